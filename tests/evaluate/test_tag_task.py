"""Tasks of kind tag on a fine-tuned head: tags from transformers' logits, entities as seqeval counts them."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.metrics import figure_of
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.results import figures_of
from llmscale.evaluate.tasks import load_tasks
from llmscale.hugging_face.exporting import export_checkpoint
from tests.evaluate.test_classify_task import write_checkpoint, write_classifier

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ROWS = [
    (["Zoë", "Li", "saw", "北京"], ["B-PER", "I-PER", "O", "B-LOC"]),
    (["👍🏽", "e\u0301a"], [0, 3]),
    (["long"] * 12, ["O"] * 12),
]


def write_task(folder: Path, rows: list[tuple[list[str], list[object]]] = ROWS, **more: object) -> str:  # type: ignore[assignment]
    lines = (json.dumps({"tokens": words, "tags": tags}) + "\n" for words, tags in rows)
    (folder / "rows.jsonl").write_text("".join(lines))
    task = {"kind": "tag", "words": "{{ tokens }}", "tags": "{{ tags }}", "labels": LABELS, **more}
    (folder / "names.yaml").write_text(yaml.safe_dump({**task, "data": {"files": ["rows.jsonl"]}}))
    return str(folder / "names.yaml")


@pytest.mark.parametrize(("family", "around"), [("bert", "cls"), ("gpt2", "eos")])
def test_tags_are_those_of_transformers_logits(family: str, around: str, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    objective = {"name": "token_classification", "labels": LABELS, "special_tokens": around}
    checkpoint = write_checkpoint(tmp_path, family, objective, {"tokens": "tokens", "tags": "tags"})
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    (task,) = load_tasks([write_task(tmp_path)]).tasks
    (prepared,) = prepare(placed, [task], Choices(output=tmp_path / "out"))
    run([prepared], lambda task, done, items: None)
    records = load_artefact(prepared.folder).records
    export_checkpoint(checkpoint, tmp_path / "exported")
    theirs = AutoModelForTokenClassification.from_pretrained(tmp_path / "exported").eval()
    special = placed.tokenizer.special
    begin, end = ([special["cls"]], [special["sep"]]) if around == "cls" else ([], [special["eos"]])
    room = 32 - len(begin) - len(end)
    for (words, _), record in zip(ROWS, records, strict=True):
        # A token is a byte: a word begins at its first one, and no part of a text ends within a word.
        starts = [len(" ".join([*words[:number], ""]).encode()) for number in range(len(words))]
        within = {place for start, word in zip(starts, words, strict=True)
                  for place in range(start + 1, start + len(word.encode()))}  # fmt: skip
        ids, first, tags = placed.tokenizer.encode(" ".join(words)), 0, []
        while first < len(ids):
            last = min(first + room, len(ids))
            while last in within:
                last -= 1
            with torch.no_grad():
                logits = theirs(torch.tensor([[*begin, *ids[first:last], *end]])).logits[0]
            chosen = logits.argmax(-1).tolist()[len(begin) :]
            tags += [LABELS[chosen[start - first]] for start in starts if first <= start < last]
            first = last
        assert record.generated == tags
        assert record.flags == (["windowed"] if len(ids) > room else [])
    assert records[1].references == ["O", "B-LOC"]
    figures = {figure.name: figure.value for figure in figures_of(load_artefact(prepared.folder)).figures}
    pairs = [(a, b) for record in records for a, b in zip(record.references, record.generated, strict=True)]
    assert figures["tag_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@pytest.mark.slow
@pytest.mark.parametrize("average", ["micro", "macro"])
def test_entities_are_counted_as_seqeval_does(average: str) -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    draw = random.Random(3)
    for _ in range(30):
        right = [draw.choices(LABELS, k=draw.randint(1, 9)) for _ in range(8)]
        given = [[tag if draw.random() < 0.6 else draw.choice(LABELS) for tag in tags] for tags in right]
        records = [
            Record(number, str(number), references=one, generated=other)
            for number, (one, other) in enumerate(zip(right, given, strict=True))
        ]
        ours = figure_of(f"entity_f1:average={average}", records, kind="tag").value
        assert ours == pytest.approx(metrics.f1_score(right, given, average=average), abs=1e-12)


def test_figures_by_hand() -> None:
    """Two of three entities are found, and one of the three that are given is none: 2 * 2 / (3 + 3)."""
    right = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC"]
    given = ["B-PER", "I-PER", "B-LOC", "B-LOC", "O", "O"]
    records = [Record(0, "a", references=right, generated=given), Record(1, "b", references=["O"], generated=["O"])]
    assert figure_of("entity_f1", records, kind="tag").value == pytest.approx(4 / 6)
    assert figure_of("tag_accuracy", records, kind="tag").value == pytest.approx(5 / 7)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([(["a", "b"], ["O"])], {}, "record 1 of .*rows.jsonl: there are 2 words and 1 tags; give each word one tag"),
        ([(["a"], ["B-ORG"])], {}, "a tag is 'B-ORG', but the labels are O, B-PER"),
        ([(["a"], [9])], {}, "a tag is 9, but the labels are O, B-PER"),
        ([(["a", " "], ["O", "O"])], {}, "but must be texts, none of them empty"),
        ([(["a"], ["O"])], {"labels": ["O", "B-PER"]}, "its labels are O, B-PER, but those of .* are O, B-PER, I-PER"),
    ],
)
def test_mistakes(
    rows: list[tuple[list[str], list[object]]], more: dict[str, object], message: str, tmp_path: Path
) -> None:
    objective = {"name": "token_classification", "labels": LABELS, "special_tokens": "cls"}
    checkpoint = write_checkpoint(tmp_path, "bert", objective, {"tokens": "tokens", "tags": "tags"})
    placed = place_whole(str(checkpoint), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=message):
        prepare(placed, load_tasks([write_task(tmp_path, rows, **more)]).tasks, Choices(output=tmp_path / "out"))


def test_another_model_is_refused(tmp_path: Path) -> None:
    placed = place_whole(str(write_classifier(tmp_path, "bert", "first")), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=r"fine-tuned for it \(objective\.name=token_classification\)"):
        prepare(placed, load_tasks([write_task(tmp_path)]).tasks, Choices(output=tmp_path / "out"))
