"""`llmscale data show`: what is learned of each objective's samples, with and without colour, of both splits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.errors import UserError
from llmscale.data_commands.show import show_samples
from tests.train.forked import run

TEXTS = ["one two three four five six seven", "你好，世界！ 再见", "eight nine ten eleven twelve thirteen"]
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "causal": ({"name": "causal"}, {}, "decoder"),
    "causal apart": ({"name": "causal", "separate_documents": True}, {}, "decoder"),
    "prefix": ({"name": "prefix"}, {}, "decoder"),
    "masked": ({"name": "masked"}, {}, "encoder"),
    "denoising": ({"name": "denoising"}, {}, "encoder_decoder"),
    "seq2seq": ({"name": "seq2seq", "target_length": 16}, {"target_field": "answer"}, "encoder_decoder"),
    "joined": ({"name": "seq2seq", "target_length": 16, "concatenate": True}, {"target_field": "answer"}, "decoder"),
    "classification": (
        {"name": "classification", "labels": ["good", "bad"]},
        {"fields": {"label": "label"}},
        "encoder",
    ),
    "chat": ({"name": "chat"}, {"fields": {"messages": "messages"}}, "decoder"),
}


def write(folder: Path, name: str, **data: Any) -> Path:
    objective, source, architecture = OBJECTIVES[name]
    rows = [
        {"text": text, "answer": f"answer {i}", "label": ("good", "bad")[i % 2],
         "messages": [{"role": "user", "content": text[:9]}, {"role": "assistant", "content": f"answer {i}"}]}
        for i, text in enumerate(TEXTS * 20)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"directory": str(folder / "run"), "threads": 1, "device": "cpu"},
        "data": {
            "sources": [{"kind": "jsonl", "paths": [str(folder / "rows.jsonl")], **source}],
            "tokenizer": {"kind": "bytes"}, "sequence_length": 64, "lanes": 1, "shuffle_buffer": 1, "holdout": 0.2,
            **data,
        },
        "model": {"layers": 2, "hidden_size": 32, "heads": 2, "architecture": architecture},
        "objective": objective,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def show(path: Path, *, colour: bool = False, evaluation: bool = False, count: int = 3) -> str:
    return "\n".join(show_samples(path, (), count=count, evaluation=evaluation, colour=colour))


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("order", ["stream", "finite"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_shows_what_is_learned(name: str, order: str, evaluation: bool, tmp_path: Path) -> None:
    shown = show(write(tmp_path, name, order=order), evaluation=evaluation)
    learned = re.findall(r"\[\[(.*?)\]\]", shown, flags=re.DOTALL)
    body = shown.rsplit("\n3 samples of ", 1)[0]
    assert body.count("--- sample ") == 3
    whole = body.replace("[[", "").replace("]]", "")
    assert any(text[:9] in whole for text in TEXTS) or name in ("masked", "denoising")
    if name in ("seq2seq", "joined", "chat"):
        answers = [text for text in learned if text != "⟨</s>⟩"]
        assert answers
        assert all(re.fullmatch(r" ?answer \d+", text) for text in answers)
        assert learned.count("⟨</s>⟩") == len(answers)
        assert "⟨padding × " in shown
    elif name == "classification":
        assert not learned
        assert len(re.findall(r"label classification: (good|bad)\n", shown)) == 3
    elif name == "masked":
        assert "⟨<mask>⟩→[[" in shown
    elif name == "denoising":
        assert "[[⟨<extra_id_0>⟩]]" in shown
    count = int(re.search(r"documents: ([\d,]+) of", shown)[1].replace(",", ""))  # type: ignore[index]
    if name in ("causal", "causal apart"):
        assert count >= 3 * 64 - 64
    if name == "chat":
        assert f"assistant {len(' answer 0') + 1}" in shown or f"assistant {len(' answer 10') + 1}" in shown


HEADS: dict[str, tuple[dict[str, Any], dict[str, Any], str, list[str]]] = {
    "preference": (
        {"name": "preference"},
        {"fields": {"chosen": "answer", "rejected": "other"}},
        "decoder",
        ["answer 0", "⟨</s>⟩", "other 0", "⟨</s>⟩"],
    ),
    "reward": (
        {"name": "reward"},
        {"fields": {"chosen": "answer", "rejected": "other"}},
        "decoder",
        ["answer 0", "⟨</s>⟩", "other 0", "⟨</s>⟩"],
    ),
    "span": (
        {"name": "span", "special_tokens": "cls"},
        {"fields": {"question": "answer", "answers": "spans"}},
        "encoder",
        ["two three"],
    ),
    "token_classification": (
        {"name": "token_classification", "labels": ["O", "B-X"], "special_tokens": "cls"},
        {"fields": {"tokens": "words", "tags": "tags"}},
        "encoder",
        ["B-X", "O", "O", "O", "O", "O", "O"],
    ),
    "contrastive": ({"name": "contrastive", "pooling": "mean"}, {"target_field": "answer"}, "encoder", []),
}


@pytest.mark.parametrize("name", HEADS)
def test_what_heads_and_preferences_learn(name: str, tmp_path: Path) -> None:
    objective, source, architecture, learned = HEADS[name]
    path = write(tmp_path, "causal", order="finite", holdout=0)
    words = TEXTS[0].split()
    row = {"text": TEXTS[0], "answer": "answer 0", "other": "other 0", "words": words, "tags": [1, *[0] * 6],
           "spans": {"text": ["two three"], "answer_start": [4]}}  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"][0] |= source
    config["model"]["architecture"] = architecture
    path.write_text(yaml.safe_dump({**config, "objective": objective}))
    shown = show(path, count=1)
    assert re.findall(r"\[\[(.*?)\]\]", shown, flags=re.DOTALL) == learned
    if name == "contrastive":
        assert f"text 1: ⟨<cls>⟩{TEXTS[0]}" in shown or f"text 1: {TEXTS[0]}" in shown
        assert "answer 0" in shown
    elif name == "token_classification":
        assert "o→[[B-X]]ne" in shown
    else:
        assert TEXTS[0] in shown.replace("[[", "").replace("]]", "")


def test_colour_is_escape_codes_and_the_same_text(tmp_path: Path) -> None:
    path = write(tmp_path, "chat")
    plain, colour = show(path), show(path, colour=True)
    assert "[[" not in colour
    assert re.sub(r"\x1b\[[\d;]*m", "", colour) == plain.replace("[[", "").replace("]]", "")
    assert re.search(r"\x1b\[1;32m answer \d+\x1b\[0m", colour)


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    assert "3 samples cut to fit" in show(write(tmp_path, "seq2seq", sequence_length=6))
    assert "0 samples cut to fit" in show(write(tmp_path, "seq2seq"))
    assert re.search(
        r"dropped or repaired: .*\d+ dialogue longer than the context, cut",
        show(write(tmp_path, "chat", sequence_length=34, order="finite")),
    )


def test_the_command_and_its_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, "chat")
    done = run("data", "show", path.name, "--samples", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[[ answer" in done.stdout
    assert "\x1b" not in done.stdout
    done = run("data", "show", path.name, "data.holdout=0", "--split", "evaluation", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("llmscale: data.holdout is 0 and data.evaluation is empty")
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no text"):
        show(path)
