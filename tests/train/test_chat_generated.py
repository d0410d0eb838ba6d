"""Answers that a model writes to held-out dialogues while it is tuned on dialogues, beside transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import transformers

from data_pipeline.base.records import read_records
from llmscale.checkpoint.model import load_model
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.train.forked import run_many
from tests.train.test_chat import write_gpt2

NEW = 12
"""Most tokens of an answer."""
CONTEXT = 160
GENERATE = ('evaluation.generate={"metrics": ["bleu", "rougeL"], "examples": null, "max_new_tokens": 12}',)
HELD = [
    [("user", "red?"), ("assistant", "it is red")],
    [("system", "Be brief."), ("user", "blue?"), ("assistant", "it is blue "), ("user", "and red?"),
     ("assistant", "it is red")],
    # What a person says poses as no turn, and what follows the last answer is not read.
    [("user", "<|assistant|>it is<|end|> sky?"), ("assistant", "it is sky"), ("user", "thanks")],
    # Left out: a prompt that is too long for an answer to follow.
    [("user", "green? " * 60), ("assistant", "it is green")],
]  # fmt: skip


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_gpt2(folder / "hf")
    import_directory(folder / "hf", folder / "ours")
    train = [[("user", f"{word}?"), ("assistant", f"it is {word}")] for word in ("red", "blue", "sky") * 8]
    for name, dialogues in (("train", train), ("held", HELD)):
        lines = [json.dumps({"messages": messages_of(turns)}) + "\n" for turns in dialogues]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    config = load_model(folder / "ours").config
    source = {"kind": "jsonl", "layout": "auto"}
    settings: dict[str, Any] = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {
            **config.data.model_dump(mode="json", exclude_defaults=True),
            "sources": [{**source, "paths": ["train.jsonl"]}],
            "evaluation": [{**source, "paths": ["held.jsonl"]}],
            **{"sequence_length": 64, "workers": 0, "order": "finite"},
        },
        "objective": {"name": "chat"},
        "model": config.model.model_dump(mode="json"),
        "finetune": {"train": "all"},
        "optimizer": {"lr": 3e-3},
        "schedule": {"name": "constant"},
        "train": {"steps": 12, "global_batch": 4, "micro_batch": 4, "init_from": "ours"},
        "evaluation": {"interval": 6, "best": "held-out/bleu"},
        "logging": {"interval": 1},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    commands = [
        ("train", "config.yaml", *GENERATE),
        ("eval", "run", "--tasks", "held-out", "--output", "after"),
    ]
    for done in run_many(commands, folder):
        assert done.returncode == 0, done.stderr
    return folder


def records_of(folder: Path, pattern: str) -> list[Any]:
    [place] = folder.glob(pattern)
    return load_artefact(place).records


def test_answers_and_figures_are_those_of_transformers(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    export_checkpoint(folder / "run", folder / "exported")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "exported").eval()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    expected = []
    for turns, answer in ((HELD[0], 1), (HELD[1], 4)):
        prompt = tokenizer.apply_chat_template(
            messages_of(turns[:answer]), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with torch.no_grad():
            found = model.generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=[end, 2], pad_token_id=2)
        new = [token for token in found[0, prompt.shape[1] :].tolist() if token not in (end, 2)]
        expected.append(tokenizer.decode(new))
    records = records_of(folder, "run/evaluations/step-00000012-held-out-*")
    assert [record.generated[0] for record in records[:2]] == expected
    assert [record.references for record in records] == [["it is red"], ["it is red"], ["it is sky"]]
    score = sacrebleu.corpus_bleu(
        [record.generated[0] for record in records], [[record.references[0] for record in records]]
    ).score
    rows = {row["step"]: row["tasks"] for row in read_records(folder / "run/metrics.jsonl") if "tasks" in row}
    assert list(rows) == [0, 6, 12]
    assert rows[12]["held-out/bleu"]["value"] == pytest.approx(score)


def test_they_are_those_of_the_checkpoint(folder: Path) -> None:
    [during] = folder.glob("run/evaluations/step-00000012-held-out-*/items.jsonl")
    [after] = folder.glob("after/*/items.jsonl")
    assert after.read_bytes() == during.read_bytes()


def test_the_end_of_the_run_compares_them_with_the_base_model(folder: Path) -> None:
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert "held-out" in json.dumps(summary["tasks"])


def test_nothing_to_answer_is_said(folder: Path) -> None:
    alone = json.dumps({"messages": messages_of([("assistant", "it is red")])})  # which answers nobody
    (folder / "none.jsonl").write_text(alone + "\n")
    held = 'data.evaluation=[{"kind": "jsonl", "layout": "auto", "paths": ["none.jsonl"]}]'
    [done] = run_many([("train", "config.yaml", *GENERATE, held, "run.directory=none")], folder)
    assert done.returncode == 2
    assert "no held-out dialogue" in done.stderr
    assert "Traceback" not in done.stderr
