"""The report shows tasks: figures with intervals, curves, comparison, calibration, and items in their own script."""

from __future__ import annotations

import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmscale.evaluate.artefact import QUESTIONS_FILE, Answer, Record
from llmscale.evaluate.metrics import figure_of
from llmscale.report.report import write_report
from tests.data_pipeline.corpora import bytes_tokenizer
from tests.evaluate.test_compare import write
from tests.report.synthetic_runs import write_run

TEXTS = ["北京是中国的首都", "<script>alert(1)</script>", "😀 no", "short"]


def _answer(text: str, nats: float) -> Answer:
    data = text.encode()
    spans = [(place, place + 1) for place in range(len(data))]
    return Answer(
        [byte + 3 for byte in data], spans, [nats / len(data)] * len(data), [True] * len(data), len(data), len(text)
    )


def _records(right: int, n: int = 40) -> list[Record]:
    """So many of n items are right, the first ones; the others are the more wrong the later they come."""
    return [
        Record(
            number,
            f"item{number}",
            [
                _answer(TEXTS[number % 4], -1.0),
                _answer("other", -2.0 if number < right else -1.0 + 0.1 * (number - right + 1)),
            ],
            gold=[0],
        )
        for number in range(n)
    ]


def _run(folder: Path, *scores: int) -> Path:
    run = write_run(folder, steps=40)
    bytes_tokenizer(run)
    for look, right in enumerate(scores, start=1):
        write(run, _records(right), task="quiz", step=10 * look)
    return run


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _texts(page: str) -> list[str]:
    parser = _Text()
    parser.feed(page)
    return parser.texts


def test_chinese_names_of_tasks_are_text_of_the_pictures_and_bring_no_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=40)
    bytes_tokenizer(run)
    for look, right in enumerate((10, 20), start=1):
        write(run, _records(right), task="常识", step=10 * look)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report([run]).page.read_text(encoding="utf-8")
    assert re.search(r"<svg[^>]*aria-label=\"常识 accuracy\".*?<text[^>]*>常识</text>", page, re.DOTALL)


def test_a_runs_tasks_are_shown_with_their_items(tmp_path: Path) -> None:
    page = write_report([_run(tmp_path / "run", 10, 20, 30)]).page.read_text(encoding="utf-8")
    figure = figure_of("accuracy", _records(30), kind="choice")
    texts = _texts(page)
    assert "quiz · accuracy" in texts
    assert f"{figure.low:.4g} to {figure.high:.4g}" in texts
    assert 'aria-label="quiz accuracy"' in page
    assert 'aria-label="quiz calibration"' in page
    place = texts.index("quiz: worst items")
    # The clearest mistake first: the last item, whose wrong answer is 1.0 nats ahead.
    assert texts[place + 1].startswith("item 39 · accuracy 0")
    assert {"北京是中国的首都", "😀 no", "<script>alert(1)</script>"} <= set(texts)
    assert "<script" not in page
    assert not re.search(r"https?:|<link|@import", page)


def test_the_band_of_a_curve_widens_with_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmscale.report import tasks

    drawn = {}
    original = tasks.curve_figure
    monkeypatch.setattr(
        tasks, "curve_figure", lambda task, metric, curves: drawn.update(curves) or original(task, metric, curves)
    )
    write_report([_run(tmp_path / "run", 20, 20, 20, 20)])
    (points,) = drawn.values()
    assert [point.step for point in points] == [10, 20, 30, 40]
    widths = [point.high - point.low for point in points]
    assert widths == sorted(widths)
    alone = figure_of("accuracy", _records(20), kind="choice")
    assert widths[0] > alone.high - alone.low  # of a single look


def test_runs_are_compared_on_the_items_that_they_share(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "a", 10), _run(tmp_path / "b", 30)]
    page = write_report(runs).page.read_text(encoding="utf-8")
    assert 'aria-label="comparison"' in page
    texts = _texts(page)
    assert "quiz: where a and b disagree" in texts
    assert any("better" in text for text in texts)


def test_items_are_shown_with_their_questions(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "a", 10), _run(tmp_path / "b", 30)]
    for run in runs:
        (folder,) = (run / "evaluations").glob("*-quiz*")
        contexts = {f"item{number}": [f"问题 {number}: <b>?\nAnswer:"] for number in range(40)}
        contexts["item38"] = ["x" * 3000 + " the end", "another"]
        (folder / QUESTIONS_FILE).write_text(json.dumps(contexts))
    page = write_report(runs).page.read_text(encoding="utf-8")
    texts = _texts(page)
    assert texts.count("问题 39: <b>?\nAnswer:") == 2  # the clearest mistake of both
    assert "问题 10: <b>?\nAnswer:" in texts[texts.index("quiz: where a and b disagree") :]
    (own,) = {text for text in texts if text.endswith("x the end | 😀 no")}
    assert own.startswith("… x")
    assert len(own) < 1100
    assert "another | other" in texts
    assert "<b>?" not in page
    (folder / QUESTIONS_FILE).write_text("{")
    assert "questions.json is damaged" in write_report(runs).page.read_text(encoding="utf-8")


def test_a_damaged_artefact_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", 20)
    lines = next((run / "evaluations").glob("*/items.jsonl"))
    kept = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join([kept[0], "{damaged\n", *kept[2:]]))
    texts = " ".join(_texts(write_report([run]).page.read_text(encoding="utf-8")))
    assert f"{lines}:2 is damaged" in texts
    assert "Summary" in texts


def test_a_run_without_tasks_has_no_such_part(tmp_path: Path) -> None:
    page = write_report([write_run(tmp_path / "run", steps=40)]).page.read_text(encoding="utf-8")
    assert "Tasks" not in _texts(page)
