"""Reports of synthetic runs: what is drawn, what is said, and what is refused."""

import json
import math
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_runs import evaluation, training_rows, write_metrics, write_run

from data_pipeline.base.errors import UserError
from llmscale.report import loss_curve, write_report
from llmscale.report.figures import loss_figure, style
from llmscale.report.record import read_run, read_runs

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Elements(HTMLParser):
    """Collects text and checks that tags are balanced and ids are unique."""

    VOID = {"meta", "br", "path", "use", "rect", "circle", "image"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(paths) -> Elements:
    return Elements(paths.page.read_text(encoding="utf-8"))


def test_a_finished_run(tmp_path):
    run = write_run(tmp_path / "quickstart")
    paths = write_report([run])
    pictures = (paths.loss, paths.learning_rate, paths.throughput, paths.gradient_norm)
    assert [path.relative_to(run).as_posix() for path in (paths.page, *pictures)] == [
        "report/report.html",
        "report/loss.png",
        "report/learning_rate.png",
        "report/throughput.png",
        "report/gradient_norm.png",
    ]
    assert all(path.read_bytes().startswith(PNG_MAGIC) for path in pictures)
    summary = json.loads((run / "summary.json").read_text())
    text = page_of(paths).text
    held_out = summary["evaluation"]
    below = 100 * (1 - held_out["bits_per_byte"] / 2.41)
    for expected in (
        f"{held_out['loss']:.4f}",
        f"{held_out['perplexity']:.2f}",
        f"{held_out['bits_per_byte']:.4f}",
        "1.7200",
        "2.4100",
        f"{below:.0f} % below the unigram model",
        "7.37 M",
        "1.64 M",
        "2 min 22 s",
        "11\u202f500 tokens/s",
        "done",
        "torch: 2.13.0",
        "directory: runs/quickstart",
        "import sys <b>&amp;</b>",
        "nats per token",
        "optimizer steps",
    ):
        assert " ".join(expected.split()) in text, expected


def test_other_terms_of_the_loss_have_their_own_pictures(tmp_path):
    run, plain = write_run(tmp_path / "bert", steps=40), write_run(tmp_path / "plain", steps=40)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "loss" in row:
            row["next_sentence_loss"] = 0.5 + 0.25 / row["step"]
    write_metrics(run, rows)
    paths = write_report([run])
    assert {name: path.name for name, path in paths.terms.items()} == {"next_sentence_loss": "next_sentence_loss.png"}
    assert paths.terms["next_sentence_loss"].read_bytes().startswith(PNG_MAGIC)
    text = page_of(paths).text
    assert "Next-sentence loss" in text
    assert f"{0.5 + 0.25 / 40:.4f}" in text
    assert "Router loss" not in text
    assert write_report([plain]).terms == {}
    assert list(write_report([plain, run], tmp_path / "both").terms) == ["next_sentence_loss"]


def test_the_page_loads_nothing_and_its_ids_are_unique(tmp_path):
    paths = write_report([write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)])
    page = paths.page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import", page)
    attributes = page_of(paths).attributes
    references = {value for name, value in attributes if name in ("href", "src")}
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert references <= {f"#{value}" for value in ids}
    assert set(re.findall(r"url\(#(\w+)\)", page)) <= set(ids)
    # Every colour of a picture follows the reader's theme.
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 4
    assert not any(re.search(r"#[0-9a-f]{6}", svg) for svg in svgs)


def test_names_and_samples_are_escaped(tmp_path):
    run = write_run(tmp_path / "<img src=x> & co")
    page = write_report([run]).page.read_text(encoding="utf-8")
    assert "<img" not in page
    assert "<b>" not in re.sub(r'class="card bars">.*?</div><p', "", page, flags=re.DOTALL)
    assert "&lt;img src=x&gt; &amp; co" in page


def test_several_runs_share_axes_and_table(tmp_path):
    runs = [write_run(tmp_path / name, seed=seed) for seed, name in enumerate(("wide", "deep", "plain"))]
    paths = write_report(runs, tmp_path / "compared")
    assert paths.page == tmp_path / "compared" / "report.html"
    text = page_of(paths).text
    assert text.count("wide, held out") == 1
    assert "3 runs compared" in text
    assert "Resolved config of deep" in text


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / side / "run", seed=seed) for seed, side in enumerate("ab")]
    assert [record.name for record in read_runs(runs)] == [str(run) for run in runs]


def test_runs_with_other_batches_are_compared_by_tokens(tmp_path):
    small = write_run(tmp_path / "small", tokens_per_step=1024)
    large = write_run(tmp_path / "large", tokens_per_step=4096, steps=100)
    text = page_of(write_report([small, large])).text
    assert "target tokens" in text
    assert "optimizer steps" not in text


def plotted(runs):
    """{label: (N, 2) points} of the loss picture."""
    with style():
        axes = loss_figure(read_runs(runs)).axes[0]
        return {line.get_label(): np.column_stack(line.get_data()) for line in axes.get_lines()}, axes


def test_the_curve_is_the_recorded_loss(tmp_path):
    run = write_run(tmp_path / "short", steps=60, evaluation_interval=20)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines, axes = plotted([run])
    expected = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    assert np.array_equal(lines["training"], np.array(expected))
    held_out = [(row["step"], row["evaluation"]["loss"]) for row in rows if "evaluation" in row]
    assert np.array_equal(lines["held out"], np.array(held_out))
    levels = {
        float(line.get_ydata()[0])
        for line in axes.get_lines()
        if line.get_linestyle() == ":" or len(line.get_xdata()) == 2
    }
    summary = json.loads((run / "summary.json").read_text())["evaluation"]
    unigram = 2.41 * summary["bytes"] * math.log(2) / summary["tokens"]
    assert any(level == pytest.approx(unigram) for level in levels)


def test_a_resumed_run_shows_the_last_attempt(tmp_path):
    run = write_run(tmp_path / "resumed", steps=20, evaluation_interval=0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    again = [{**row, "attempt": 1, "loss": row["loss"] + 1} for row in rows[10:]]
    write_metrics(run, [*rows[:15], *again])
    lines, _ = plotted([run])
    assert np.array_equal(lines["training"][:, 0], np.arange(1, 21))
    assert lines["training"][:, 1] == pytest.approx([row["loss"] for row in (*rows[:10], *again)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_losses_that_are_not_finite_are_shown(tmp_path, bad):
    run = write_run(tmp_path / "diverged", steps=300, finished=False)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["step"] > 200 and "loss" in row:
            row["loss"] = row["grad_norm"] = bad
    write_metrics(run, rows)
    text = page_of(write_report([run])).text
    assert "not finite" in text
    lines, _ = plotted([run])
    crosses = lines["not finite"][:, 0]
    assert crosses.min() == 201
    assert crosses.max() == 300
    assert lines["training"][np.isfinite(lines["training"][:, 1]), 0].max() == 200


def test_a_gradient_norm_of_minus_one_means_not_finite(tmp_path):
    run = write_run(tmp_path / "run", steps=5, evaluation_interval=0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[2]["grad_norm"] = -1
    write_metrics(run, rows)
    assert np.isnan(read_run(run, "run").metrics["grad_norm"].value).tolist() == [False, False, True, False, False]
    assert "not finite" in page_of(write_report([run])).text


def test_nothing_finite_at_all(tmp_path):
    run = write_run(tmp_path / "lost", steps=5, finished=False, evaluation_interval=0)
    rows = [{"step": step, "attempt": 0, "loss": math.nan} for step in range(1, 6)]
    write_metrics(run, rows)
    assert "not recorded" in page_of(write_report([run])).text


@pytest.mark.parametrize("rows", ["one", "evaluation only", "torn tail"])
def test_runs_in_progress(tmp_path, rows):
    run = write_run(tmp_path / "early", steps=3, finished=False, evaluation_interval=0)
    first = training_rows(3, 1, 0, lr=1e-3, tokens_per_step=100, floor=3.0)
    write_metrics(run, [{"step": 10, "attempt": 0, "evaluation": evaluation(4.0)}] if "only" in rows else first[:1])
    if rows == "torn tail":
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write('{"step": 2, "attempt": 0, "lo')
    paths = write_report([run])
    assert paths.loss.read_bytes().startswith(PNG_MAGIC)
    assert "no outcome yet" in page_of(paths).text
    record = read_run(run, "early")
    assert len(record.metrics["loss"].step) == (0 if "only" in rows else 1)
    assert record.held_out.get("loss") == (4.0 if "only" in rows else None)


def test_broken_side_files_do_not_stop_a_report(tmp_path):
    run = write_run(tmp_path / "cut")
    for path in (run / "summary.json", run / "outcome.json", next(run.glob("checkpoints/*/manifest.json"))):
        path.write_text(path.read_text()[:-9])
    (run / "config.yaml").unlink()
    assert "no outcome yet" in page_of(write_report([run])).text


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        ({"outcome": "running"}, "running or killed"),
        ({"outcome": "failed", "reason": "<disk> full"}, "<disk> full"),
    ],
)
def test_the_outcome_is_shown(tmp_path, outcome, shown):
    run = write_run(tmp_path / "run", steps=5, finished=False)
    (run / "outcome.json").write_text(json.dumps(outcome))
    assert shown in page_of(write_report([run])).text


def test_refusals_name_the_file(tmp_path):
    with pytest.raises(UserError, match="at least one run"):
        write_report([])
    with pytest.raises(UserError, match=r"no run directory .*absent"):
        write_report([tmp_path / "absent"])
    run = tmp_path / "empty"
    run.mkdir()
    with pytest.raises(UserError, match=r"empty/metrics\.jsonl is missing"):
        write_report([run])
    (run / "metrics.jsonl").write_text('{"step": 1, "att')
    with pytest.raises(UserError, match=r"empty/metrics\.jsonl has no complete row"):
        loss_curve(run, tmp_path / "loss.png")
    assert not (run / "report").exists()


def test_without_matplotlib(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", steps=3)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (lambda: write_report([run]), lambda: loss_curve(run, tmp_path / "loss.png")):
        with pytest.raises(UserError, match=re.escape("pip install 'llmscale[plots]'")):
            draw()


def test_loss_curve_alone_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    run = write_run(tmp_path / "run", steps=120)
    loss_curve(run, tmp_path / "deep" / "loss.png")
    assert (tmp_path / "deep" / "loss.png").read_bytes().startswith(PNG_MAGIC)
    assert dict(matplotlib.rcParams) == before
    assert not (run / "report").exists()


def test_reports_are_reproducible(tmp_path):
    run = write_run(tmp_path / "run")
    first = write_report([run], tmp_path / "first")
    second = write_report([run], tmp_path / "second")
    assert first.page.read_bytes() == second.page.read_bytes()
    assert first.loss.read_bytes() == second.loss.read_bytes()
