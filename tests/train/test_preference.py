"""`llmscale train` with objectives preference and reward: figures, the reference's log-probabilities, files."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from data_pipeline.base.records import read_every_record, read_records
from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.train.forked import Finished, run, run_many, run_on_ranks
from tests.train.runs import evaluations

WORDS = ("red", "blue", "green", "cat", "dog", "sun", "tree", "\u597d")
SMALL = {
    "model": {"layers": 2, "hidden_size": 32, "heads": 2, "max_positions": 64},
    "optimizer": {"lr": 0.003},
    "schedule": {"name": "constant"},
}
DATA = {"tokenizer": {"kind": "bytes"}, "sequence_length": 48, "lanes": 4, "span_bytes": 2000, "workers": 0}


def write_runs(folder: Path) -> None:
    """Answers that end in yes are better; the configs of a model to start from, of dpo and of kto."""
    draw = random.Random(0)
    with open(folder / "pairs.jsonl", "w") as pairs, open(folder / "judged.jsonl", "w") as judged:
        for _ in range(80):
            prompt, good, bad = (" ".join(draw.choices(WORDS, k=2)) for _ in range(3))
            row = {"prompt": f"{prompt}? ", "chosen": f"{good} yes", "rejected": f"{bad} no"}
            pairs.write(json.dumps(row) + "\n")
            label = draw.random() < 0.5
            answer = row["chosen" if label else "rejected"]
            judged.write(json.dumps({"prompt": row["prompt"], "completion": answer, "good": label}) + "\n")
    common: dict[str, Any] = {**SMALL, "logging": {"interval": 1}}

    def write(name: str, source: dict[str, Any], **changes: Any) -> None:
        config = {
            "run": {"directory": name, "threads": 1, "device": "cpu"},
            "data": {"sources": [{"kind": "jsonl", **source}], **DATA, **changes.pop("data", {})},
            "train": {"steps": 8, "global_batch": 8, "micro_batch": 4, **changes.pop("train", {})},
            **common,
            **changes,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))

    write("base", {"paths": ["pairs.jsonl"], "field": "{prompt}{rejected}"}, data={"shuffle_buffer": 16})
    tuned: dict[str, Any] = {
        "data": {"order": "finite", "holdout": 0.2},
        "train": {"init_from": "base", "steps": 12},
        "evaluation": {"interval": 4, "batch": 4},
    }
    pairs = {"paths": ["pairs.jsonl"], "field": "prompt", "fields": {"chosen": "chosen", "rejected": "rejected"}}
    judged = {"paths": ["judged.jsonl"], "field": "prompt", "fields": {"answer": "completion", "label": "good"}}
    write("dpo", pairs, objective={"name": "preference"}, **tuned)
    write("kto", judged, objective={"name": "preference", "loss": "kto"}, **tuned)
    write("reward", pairs, objective={"name": "reward"}, **tuned)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preference")
    write_runs(folder)
    done = run_many([("train", f"{name}.yaml") for name in ("base", "dpo", "kto", "reward")], folder)
    for each in done:
        assert each.returncode == 0, each.stderr
    return folder


def test_they_learn_and_say_how_well(folder: Path) -> None:
    for name, measures in (
        ("dpo", {"accuracy", "margin", "chosen_reward", "rejected_reward"}),
        ("kto", {"accuracy", "kl"}),
        ("reward", {"accuracy", "margin"}),
    ):
        first, *_, last = evaluations(folder / name)
        assert measures | {"loss", "samples", "documents"} <= last.keys()
        if name != "kto":
            assert last["loss"] < first["loss"], name
    assert evaluations(folder / "dpo")[-1]["accuracy"] > 0.9
    assert min(row["loss"] for row in evaluations(folder / "kto")) < 0.48
    # Before the first update the model is the reference.
    assert losses(folder / "dpo")[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses(folder / "kto")[0] == pytest.approx(0.5, abs=1e-4)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_records(run / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize(("name", "data"), [("dpo", "pairs.jsonl"), ("kto", "judged.jsonl"), ("reward", "pairs.jsonl")])
def test_files_are_evaluated_as_the_run_does(name: str, data: str, folder: Path) -> None:
    held = evaluations(folder / name)[-1]
    done = run("eval", name, "--data", data, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["samples"] == 80
    assert figures.keys() >= held.keys() - {"step"}
    # All of them, most of which it was trained on.
    assert figures["loss"] < held["loss"] + 0.1


def reference_file(folder: Path) -> Path:
    [path] = (folder / "cache").glob("reference-*.jsonl")
    return path


def test_the_reference_is_computed_once_and_kept(folder: Path) -> None:
    """As plain torch has it, of every sample; a later start and another layout take what is there."""
    path = reference_file(folder / "dpo")
    rows = read_every_record(path)
    values = sorted(tuple(row["values"]) for row in rows)
    trained = load_model(folder / "base")
    eos, encode, expected = trained.tokenizer.special["eos"], trained.tokenizer.encode, []
    for line in (folder / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        sums = []
        for name in ("chosen", "rejected"):
            head, answer = [eos, *encode(row["prompt"])], [*encode(row[name]), eos]
            with torch.no_grad():
                logits = trained.model.head(trained.model(torch.tensor([[*head, *answer]])).hidden)[0].log_softmax(-1)
            sums.append(float(logits[torch.arange(len(head) - 1, len(head) + len(answer) - 1), answer].sum()))
        expected.append(tuple(sums))
    assert values == [pytest.approx(pair, rel=1e-5) for pair in sorted(expected)]

    before = path.read_bytes()
    done = run("train", "dpo.yaml", "train.steps=16", "train.micro_batch=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before
    assert "log-probabilities of" not in done.stderr


def copied(folder: Path, name: str) -> tuple[str, ...]:
    return ("train", "dpo.yaml", f"run.directory={name}")


def finished(done: Finished) -> None:
    assert done.returncode == 0, done.stderr


def test_what_is_damaged_is_made_again(folder: Path) -> None:
    finished(run(*copied(folder, "damaged"), cwd=folder))
    path = reference_file(folder / "damaged")
    lines = path.read_bytes().splitlines(keepends=True)
    whole = {row["sample"]: row["values"] for row in read_every_record(path)}
    path.write_bytes(b"".join([*lines[:3], lines[3].replace(b"-", b"+"), b"{torn\n", *lines[7:], lines[4][:30]]))
    done = run(*copied(folder, "damaged"), "train.steps=14", cwd=folder)
    finished(done)
    assert "log-probabilities of 4 samples by" in done.stderr
    assert {row["sample"]: row["values"] for row in read_every_record(path)} == whole
    assert losses(folder / "damaged")[:12] == losses(folder / "dpo")[:12]


def test_a_run_goes_on_without_its_reference_and_refuses_another(folder: Path) -> None:
    shutil.copytree(folder / "kto", folder / "alone")
    later = ("train", "kto.yaml", "run.directory=alone")
    (folder / "base").rename(folder / "gone")
    try:
        finished(run(*later, "train.steps=14", cwd=folder))
        kept = reference_file(folder / "alone")
        rows = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(b"".join(rows[:5]))
        done = run(*later, "train.steps=16", cwd=folder)
        assert done.returncode == 2, done.stderr
        assert "train.init_from: there is no checkpoint or run directory base" in done.stderr
        finished(run("train", "base.yaml", "train.steps=2", cwd=folder))
        done = run(*later, "train.steps=16", cwd=folder)
        assert done.returncode == 2, done.stderr
        assert "train.init_from base has other weights (digest " in done.stderr
    finally:
        shutil.rmtree(folder / "base", ignore_errors=True)
        (folder / "gone").rename(folder / "base")
    finished(run(*later, "train.steps=16", cwd=folder))


def test_low_rank_factors_and_forgetting_go_with_it(folder: Path) -> None:
    """The reference has no factors; what is forgotten is measured as the language model that it is."""
    settings = ("finetune={lora: {rank: 2}, forgetting: pretraining}", "train.steps=6", "run.directory=factors")
    finished(run("train", "base.yaml", "data.holdout=0.1", "run.directory=held", cwd=folder))
    finished(run("train", "dpo.yaml", "train.init_from=held", *settings, cwd=folder))
    assert losses(folder / "factors")[0] == pytest.approx(0.6931, abs=1e-4)
    assert losses(folder / "factors")[-1] < 0.693
    rows = [row["forgetting"] for row in read_records(folder / "factors/metrics.jsonl") if "forgetting" in row]
    assert len(rows) == 2
    head = ("finetune={train: head}", "train.steps=4", "run.directory=head-alone")
    finished(run("train", "reward.yaml", *head, cwd=folder))
    assert losses(folder / "head-alone")[-1] < losses(folder / "head-alone")[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("train.init_from=null",), "neither objective.reference nor train.init_from is given; set train.init_from to"),
        (("data.order=stream",), "data.order is stream, which has no end; set data.order=finite"),
        (
            ("objective.reference=nowhere",),
            "objective.reference: there is no checkpoint or run directory nowhere",
        ),
        (("objective.reference=wide",), "objective.reference: "),
        (("objective.reference=other",), "objective.reference other was trained with another tokenizer ("),
        (
            ("model.architecture=encoder",),
            "objective.name is preference, which trains a decoder, but model.architecture is encoder;",
        ),
        (("model.architecture=encoder_decoder",), "which trains a decoder, but model.architecture is encoder_decoder;"),
        (("data.sequence_length=80",), "data.sequence_length (80 tokens) exceeds model.max_positions (64)"),
        (("parallel.context=2",), "parallel.context"),
    ],
)
def test_what_cannot_be(changes: tuple[str, ...], words: str, folder: Path) -> None:
    if changes == ("objective.reference=wide",):
        finished(run("train", "base.yaml", "model.hidden_size=16", "run.directory=wide", "train.steps=1", cwd=folder))
    if changes == ("objective.reference=other",):
        other = (
            "data.tokenizer={kind: sentencepiece, train: {vocab_size: 300}}",
            "run.directory=other",
            "train.steps=1",
        )
        finished(run("train", "base.yaml", *other, cwd=folder))
    done = run("train", "dpo.yaml", "run.directory=never", *changes, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reward_model_is_a_classifier_of_one_label(folder: Path) -> None:
    """Of transformers, both ways, with the rewards that training compares."""
    export_checkpoint(folder / "reward", folder / "reward-hf")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "reward-hf").eval()
    assert theirs.config.num_labels == 1
    trained = load_model(folder / "reward")
    objective = trained.config.objective.build(trained.tokenizer, 48, 0)
    read = objective.read("red cat? ", {"chosen": "sun yes", "rejected": "sun no"})  # type: ignore[attr-defined]
    for answer in read.answers:
        ids = torch.tensor([[*read.prompt, *answer]])
        with torch.no_grad():
            ours = trained.model.classification(trained.model(ids).hidden[:, -1])  # type: ignore[misc]
            torch.testing.assert_close(ours, theirs(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    import_directory(folder / "reward-hf", folder / "reward-back")
    back = load_model(folder / "reward-back").model
    known, again = trained.tokenizer.vocab_size, dict(back.named_parameters())
    for key, parameter in trained.model.named_parameters():
        rows = slice(known if key == "embedding.weight" else None)  # others fill up
        assert torch.equal(parameter[rows], again[key][rows]), key
    more = ("train.init_from=reward", "run.directory=reward-again", "train.steps=1", "optimizer.lr=1e-12")
    finished(run("train", "reward.yaml", *more, cwd=folder))
    first, second = evaluations(folder / "reward-again")[-1], evaluations(folder / "reward")[-1]
    assert first["margin"] == pytest.approx(second["margin"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "layouts"), [("dpo", ("zero3", "tensor", "pipeline")), ("kto", ("zero3",))])
def test_ranks_share_the_reference_and_train_alike(loss: str, layouts: tuple[str, ...], folder: Path) -> None:
    """Two data-parallel ranks, tensor-parallel ones, stages of a pipeline, ZeRO 3: the same samples, the same
    log-probabilities and the same losses as one process."""
    whole = {row["sample"]: row["values"] for row in read_every_record(reference_file(folder / loss))}
    plain = losses(folder / loss)[:6]
    settings_of = {
        "zero3": ("engine.zero_stage=3",),
        "tensor": ("parallel.tensor=2", "parallel.sequence_parallel=true"),
        "pipeline": ("parallel.pipeline=2",),
    }
    for name in layouts:
        layout = settings_of[name]
        directory = f"{loss}-{name}"
        settings = (f"run.directory={directory}", "train.steps=6", "train.micro_batch=2", *layout)
        done = run_on_ranks(2, "train", f"{loss}.yaml", *settings, cwd=folder)
        assert done.returncode == 0, done.stderr
        rows = read_every_record(reference_file(folder / directory))
        assert {row["sample"] for row in rows} <= whole.keys()
        for row in rows:
            assert row["values"] == pytest.approx(whole[row["sample"]], rel=1e-6)
        assert losses(folder / directory) == pytest.approx(plain, rel=1e-5), name


@pytest.mark.parametrize("name", ["dpo_en", "reward_en"])
def test_the_shipped_configs_in_miniature(name: str, folder: Path) -> None:
    """On data of the form that they are for, from a small chat model."""
    draw = random.Random(3)
    rows = [
        {
            "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hello?"}][i % 2 :],
            "chosen": {"from": "gpt", "value": " ".join(draw.choices(WORDS, k=4))},
            "rejected": {"from": "gpt", "value": " ".join(draw.choices(WORDS, k=2)) + " no"},
        }
        for i in range(30)
    ]
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    [source] = given["data"]["sources"]
    source["paths"] = ["dialogues.jsonl"]
    given["data"] |= {"sequence_length": 64, "workers": 0}
    given["model"] |= {"layers": 2, "hidden_size": 32, "heads": 2, "ffn_size": 72, "max_positions": 64}
    given["train"] |= {"init_from": f"{name}-base", "epochs": 1, "global_batch": 4}
    given["schedule"]["warmup_steps"] = 1
    given["run"] = {"directory": name, "threads": 1, "device": "cpu"}
    chat = {"messages": [*TURNS, {"role": "assistant", "content": "Yes."}]}
    (folder / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    base = {
        **given,
        "run": {**given["run"], "directory": f"{name}-base"},
        "objective": {"name": "chat", "pack": False},
        "train": {"steps": 1, "global_batch": 1},
        "evaluation": {},
        "schedule": {"name": "constant", "warmup_steps": 0},
    }
    base["data"] = {
        **given["data"],
        "holdout": 0,
        "sources": [{"kind": "jsonl", "paths": ["chat.jsonl"], "layout": "auto"}],
    }
    for each, config in (("base", base), (name, given)):
        (folder / f"{name}-{each}.yaml").write_text(yaml.safe_dump(config))
        finished(run("train", f"{name}-{each}.yaml", cwd=folder))
    assert evaluations(folder / name)[-1].keys() >= {"accuracy", "margin"}


CONFIGS = Path(__file__).parents[2] / "configs/finetune"
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]


LORA = "finetune={lora: {rank: 4, alpha: 8, targets: [all]}}"


@pytest.mark.slow
def test_with_low_rank_factors_the_reference_is_what_the_run_began_as(folder: Path) -> None:
    """The base without factors, once for each sample, in one process and on ranks, which train alike; a checkpoint
    with factors with those."""
    finished(run(*copied(folder, "lora"), LORA, cwd=folder))
    layouts = {"zero": ("parallel.data=2", "engine.zero_stage=3"), "tensor": ("parallel.tensor=2",)}
    for name, layout in layouts.items():
        done = run_on_ranks(2, *copied(folder, name), LORA, *layout, cwd=folder)
        assert done.returncode == 0, done.stderr
    expected = {row["sample"]: row["values"] for row in read_every_record(reference_file(folder / "dpo"))}
    for name in ("lora", *layouts):
        rows = read_every_record(reference_file(folder / name))
        assert len(rows) == len(expected) == 80
        assert {row["sample"]: row["values"] for row in rows} == {
            sample: pytest.approx(pair, rel=1e-5) for sample, pair in expected.items()
        }
        assert losses(folder / name) == pytest.approx(losses(folder / "lora"), rel=1e-5)
    assert losses(folder / "lora")[-1] < losses(folder / "lora")[0] == pytest.approx(0.6931, abs=1e-4)
    for name, section in (("further", LORA), ("merged", "finetune=null")):
        finished(run(*copied(folder, name), section, "train.init_from=lora", "train.steps=1", cwd=folder))
        assert losses(folder / name) == [pytest.approx(0.6931, abs=1e-4)]
        rows = read_every_record(reference_file(folder / name))
        assert max(abs(row["values"][0] - expected[row["sample"]][0]) for row in rows) > 0.01
