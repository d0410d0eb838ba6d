"""Tasks of kind span on a fine-tuned head: answers from transformers' logits by brute force, SQuAD's figures."""

import json
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.heads.span import best_span
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.results import figures_of
from llmscale.evaluate.tasks import load_tasks
from llmscale.hugging_face.exporting import export_checkpoint
from tests.evaluate.test_classify_task import write_checkpoint, write_classifier

LENGTH = 32
ROWS = [
    ("who?", "Zoë Li saw 北京 and left, in 2019", ["Zoë Li", "Zoë"]),
    ("where?", "the 👍🏽 of Paris is e\u0301a good", ["Paris"]),
    ("why?", "nobody knows", []),
]


def write_task(folder: Path, **more: object) -> str:
    rows = [{"q": question, "c": passage, "a": answers} for question, passage, answers in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "span", "question_text": "{{ q }}", "passage": "{{ c }}", "references": "{{ a }}",
            "metrics": ["exact_match", "f1"], "data": {"files": ["rows.jsonl"]}, **more}  # fmt: skip
    (folder / "asked.yaml").write_text(yaml.safe_dump(task))
    return str(folder / "asked.yaml")


def squad_f1(right: str, found: str) -> float:
    """As the published script has it."""

    def words(text: str) -> list[str]:
        plain = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in plain.split() if word not in ("a", "an", "the")]

    one, other = words(right), words(found)
    if not one or not other:
        return float(one == other)
    same = sum((Counter(one) & Counter(other)).values())
    return 2 * same / (len(one) + len(other)) if same else 0.0


@pytest.mark.parametrize(("family", "around"), [("bert", "cls"), ("gpt2", "eos")])
@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_answers_are_those_of_transformers_logits(family: str, around: str, threshold: float, tmp_path: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    objective = {"name": "span", "special_tokens": around, "unanswerable": True, "stride": 9}
    checkpoint = write_checkpoint(tmp_path, family, objective, {"question": "q", "answers": "a"})
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    path = write_task(tmp_path, unanswerable=True, max_answer_length=6, null_threshold=threshold)
    (task,) = load_tasks([path]).tasks
    (prepared,) = prepare(placed, [task], Choices(output=tmp_path / "out"))
    run([prepared], lambda task, done, items: None)
    records = load_artefact(prepared.folder).records
    export_checkpoint(checkpoint, tmp_path / "exported")
    theirs = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "exported").eval()
    special = placed.tokenizer.special
    begin, end = ([special["cls"]], [special["sep"]]) if around == "cls" else ([], [special["eos"]])
    for (question, passage, _), record in zip(ROWS, records, strict=True):
        asked, ids = placed.tokenizer.encode(question), placed.tokenizer.encode(passage)
        room = LENGTH - len(begin) - 2 - len(asked)
        best, text, nowhere, first = -np.inf, "", np.inf, 0
        while True:
            window = ids[first : first + room]
            front = [*begin, *asked, *end]
            row = [*front, *window, *end]
            types = [0] * len(front) + [1] * (len(row) - len(front))
            more = {"token_type_ids": torch.tensor([types])} if family == "bert" else {}
            with torch.no_grad():
                found = theirs(torch.tensor([row]), **more)
            starts, ends = found.start_logits[0].tolist(), found.end_logits[0].tolist()
            null = 0 if around == "cls" else len(row) - 1
            nowhere = min(nowhere, starts[null] + ends[null])
            for start in range(len(window)):
                for stop in range(start, min(start + 6, len(window))):
                    score = starts[len(front) + start] + ends[len(front) + stop]
                    if score > best:
                        best = score
                        data = passage.encode()[first + start : first + stop + 1]  # a token is a byte
                        text = data.decode(errors="ignore").strip()
            if first + room >= len(ids):
                break
            first += 9
        assert record.generated == ["" if nowhere - best > threshold else text], (question, nowhere - best)
        assert record.flags == (["windowed"] if len(ids) > room else [])
    figures = {figure.name: figure.value for figure in figures_of(load_artefact(prepared.folder)).figures}
    right = [max(squad_f1(answer, record.generated[0]) for answer in row[2] or [""])
             for row, record in zip(ROWS, records, strict=True)]  # fmt: skip
    assert figures["f1"] == pytest.approx(np.mean(right))


def test_best_span_is_that_of_brute_force() -> None:
    draw = np.random.default_rng(0)
    for size in (1, 2, 9, 20):
        logits = draw.normal(size=(size, 2))
        every = [(logits[i, 0] + logits[j, 1], i, j) for i in range(size) for j in range(i, min(size, i + 4))]
        assert best_span(logits, 4) == pytest.approx(max(every))


def test_another_model_is_refused(tmp_path: Path) -> None:
    placed = place_whole(str(write_classifier(tmp_path, "bert", "first")), torch.device("cpu"), torch.float32)
    (task,) = load_tasks([write_task(tmp_path, unanswerable=True)]).tasks
    with pytest.raises(UserError, match=r"fine-tuned for it \(objective\.name=span\)"):
        prepare(placed, [task], Choices(output=tmp_path / "out"))
