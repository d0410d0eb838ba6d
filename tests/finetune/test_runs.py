"""`llmscale train` with a `finetune` section: what becomes of each tensor, what is said, and mistakes."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from llmscale.checkpoint import Checkpoint, newest_intact
from llmscale.config import ModelConfig, load_config
from llmscale.finetune.feature_store import FeatureStore
from llmscale.parallel.init import initial_values
from llmscale.parity.job import run_layout
from tests.evaluate.models import write_tasks
from tests.ranks import run_ranks
from tests.tiny_run import write_tiny_run
from tests.train.forked import run
from tests.train.runs import evaluations, metrics
from tests.train.test_classification import BAD, GOOD, write_run

FROM = ("train.init_from=pretrained", "train.steps=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pretrained BERT, and rows to tune it on."""
    folder = tmp_path_factory.mktemp("finetune")
    write_run(folder)
    pretrained = ("objective={name: masked}", "model.next_sentence=false", "train.steps=2")
    done = run("train", "config.yaml", *pretrained, "run.directory=pretrained", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def same(one: Checkpoint, other: Checkpoint) -> set[str]:
    """The tensors of both that are equal to the bit."""
    names = set(one.names) & set(other.names)
    return {name for name in names if torch.equal(one.full(name), other.full(name))}


def test_only_the_head_is_trained(folder: Path) -> None:
    done = run("train", "config.yaml", *FROM, "finetune={train: head}", "run.directory=head", cwd=folder)
    assert done.returncode == 0, done.stderr
    found, base = newest_intact(folder / "head"), newest_intact(folder / "pretrained")
    body = {name for name in base.names if not name.startswith("head.")}
    assert same(found, base) == body
    head = sum(found.full(name).numel() for name in found.names if name not in body)
    everything = sum(found.full(name).numel() for name in found.names)
    assert f"{everything:,} parameters, {head:,} of them trained" in done.stderr
    done = run("generate", "head", "--prompt", "x", cwd=folder)
    assert done.returncode == 2  # It reads as any checkpoint does, but is no language model.
    assert "continues no text" in done.stderr


def test_layers_that_are_drawn_anew(folder: Path) -> None:
    tuned = ("finetune={train: head, redraw_layers: 1}", "run.directory=redrawn", "optimizer.lr=1e-12")
    done = run("train", "config.yaml", *FROM, *tuned, "schedule.warmup_steps=0", "train.steps=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    found, base = newest_intact(folder / "redrawn"), newest_intact(folder / "pretrained")
    name = "blocks.1.attention.query.weight"
    model = ModelConfig.model_validate(found.manifest.config["model"])
    drawn = initial_values(model, 0, name, 0, 32 * 32).view(32, 32)
    assert torch.allclose(found.full(name), drawn, atol=1e-6)
    assert "blocks.0.attention.query.weight" in same(found, base)
    assert "blocks.1.attention.query.weight" not in same(found, base)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("finetune={train: haed}",), ["finetune.train", "'haed'", "did you mean head?"]),
        (("finetune={train: [blocks.7]}",), ["finetune.train has 'blocks.7'", "blocks.0"]),
        (("finetune={train: layers, layers: 3}",), ["finetune.layers is 3", "2 layers"]),
        (("finetune={train: head}", "train.init_from=null"), ["finetune is given", "train.init_from"]),
    ],
)
def test_mistakes(folder: Path, settings: tuple[str, ...], parts: list[str]) -> None:
    done = run("train", "config.yaml", *FROM, *settings, "run.directory=refused", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr.splitlines()[-1]
    assert not (folder / "refused").exists()


EPOCHS = (
    "train.steps=24",
    "data.order=finite",
    "optimizer.name=sgd",
    "optimizer.lr=0.5",
    "optimizer.clip=0.05",
    "logging.interval=1",
)


def losses(folder: Path) -> list[float]:
    return [loss for _, loss, _ in metrics(folder)]


def settings_of(head: str, folder: Path) -> tuple[str, ...]:
    """By which a head is trained on the rows: their telling word is what is labelled or asked for."""
    if head == "classification":
        return ()
    path = folder / f"{head}.jsonl"
    with open(path, "w") as file:
        for line in (folder / "rows.jsonl").read_text().splitlines():
            text = json.loads(line)["sentence"]
            word = next(word for word in text.split() if word in (*GOOD, *BAD))
            start = text.index(word)
            entities = [[start, start + len(word), "KIND"]]
            answers = {"text": [word], "answer_start": [start]}
            file.write(json.dumps({"text": text, "entities": entities, "q": "how?", "answers": answers}) + "\n")
    fields, objective = {
        "token_classification": ("{spans: entities}", "{labels: [O, B-KIND, I-KIND], given: spans, dropout: 0.1}"),
        "span": ("{question: q, answers: answers}", "{}"),
    }[head]
    source = f"data.sources=[{{kind: jsonl, paths: [{path}], fields: {fields}}}]"
    return source, f"objective={objective.replace('{', f'{{name: {head}, ', 1)}", "data.sequence_length=40"


@pytest.mark.parametrize("head", ["classification", "token_classification", "span"])
def test_features_that_are_computed_once(head: str, folder: Path) -> None:
    """Losses are those of the long way, and there is one file of them."""
    tuned = ("config.yaml", *FROM, *EPOCHS, "evaluation.interval=12", *settings_of(head, folder))
    for name, features in (("long", "false"), ("short", "true")):
        section = f"finetune={{train: head, features: {features}}}"
        done = run("train", *tuned, section, f"run.directory={head}-{name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    long, short = losses(folder / f"{head}-long"), losses(folder / f"{head}-short")
    assert len(set(long)) == len(long) == 24
    assert short == pytest.approx(long, rel=1e-6)
    for shown, expected in zip(*(evaluations(folder / f"{head}-{name}") for name in ("short", "long")), strict=True):
        for key in {"loss", "accuracy", "exact"} & expected.keys():
            assert shown[key] == pytest.approx(expected[key], rel=1e-5), key
    [features] = (folder / f"{head}-short" / "cache").glob("features-*")
    assert list(features.glob("part-*.safetensors"))
    one, other = newest_intact(folder / f"{head}-short"), newest_intact(folder / f"{head}-long")
    for name in other.names:
        assert torch.allclose(one.full(name), other.full(name), rtol=1e-5, atol=1e-6), name


def test_features_go_on_after_a_stop_and_a_damage(folder: Path) -> None:
    tuned = ("config.yaml", *FROM, *EPOCHS, "evaluation.interval=0", "schedule.name=constant", "finetune={train: head}")
    for name, steps in (("through", 24), ("stopped", 7), ("stopped", 24)):
        done = run("train", *tuned, f"train.steps={steps}", f"run.directory={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    assert losses(folder / "stopped") == losses(folder / "through")
    done = run("train", *tuned, "train.steps=20", "run.directory=damaged", cwd=folder)
    for part in (folder / "damaged" / "cache").glob("features-*/part-*"):
        part.write_bytes(part.read_bytes()[:-7])
    done = run("train", *tuned, "run.directory=damaged", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert losses(folder / "damaged") == pytest.approx(losses(folder / "through"), rel=1e-6)


def test_what_was_gained_and_forgotten(tmp_path: Path) -> None:
    """A tuned language model beside the one that it began as: tasks by pairs, and text by source."""
    write_tiny_run(tmp_path)
    write_tasks(tmp_path / "tasks", items=6)
    same = ("model.max_positions=192", "train.steps=4")
    done = run("train", "config.yaml", "run.directory=base", "data.holdout=0.1", *same, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "other.txt").write_text("0123456789 " * 300)
    (tmp_path / "held.txt").write_text("some other words that nobody trained on " * 40)
    sources = "[{paths: [held.txt]}, {paths: [text-0.txt], label: 旧文}, {paths: [text-1.txt], label: 旧文}]"
    tuned = (
        *same, "train.init_from=base", "data.sources=[{paths: [other.txt]}]", "data.holdout=0",
        "evaluation.tasks=[tasks/choice.yaml]", "optimizer.lr=0.01", "data.lanes=1",
    )  # fmt: skip
    section = f"finetune={{train: layers, layers: 1, forgetting: {sources}}}"
    done = run("train", "config.yaml", "run.directory=tuned", *tuned, section, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "What was forgotten" in done.stdout
    assert "base (before)" in done.stdout
    summary = json.loads((tmp_path / "tuned" / "summary.json").read_text())
    for name, path in (("held.txt", "held.txt"), ("旧文", "text-[01].txt")):
        for run_directory, key in (("base", "before"), ("tuned", "after")):
            done = run("eval", run_directory, "--data", path, "--json", cwd=tmp_path)
            expected = json.loads(done.stdout)["bits_per_byte"]
            assert summary["forgetting"][name][key] == pytest.approx(expected, rel=1e-5)
    [compared] = summary["tasks"]["comparisons"]
    assert compared["task"] == "choice"
    for place, run_directory in enumerate(("base", "tuned")):
        done = run("eval", run_directory, "--tasks", "tasks/choice.yaml", "--json", cwd=tmp_path)
        [figures] = json.loads(done.stdout)["tasks"]
        assert compared["figures"][place]["value"] == figures["metrics"][compared["metric"]]["value"]
    section = "finetune={forgetting: pretraining}"
    done = run("train", "config.yaml", "run.directory=again", *tuned, section, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "again" / "summary.json").read_text())["forgetting"].values()
    held_out = json.loads((tmp_path / "base" / "summary.json").read_text())["evaluation"]
    assert row["before"] == pytest.approx(held_out["bits_per_byte"], rel=1e-5)


def test_text_is_forgotten_by_language_models_alone(folder: Path) -> None:
    for value, part in (("pretraining", "objective classification"), ("everything", "'everything' is neither")):
        done = run("train", "config.yaml", *FROM, f"finetune={{forgetting: {value}}}", cwd=folder)
        assert done.returncode == 2
        assert part in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("head", ["classification", pytest.param("span", marks=pytest.mark.slow)])
def test_features_on_two_ranks(head: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    section = "finetune={train: head, features: %s}"
    found = {}
    for ranks, features, layout in (
        (1, "false", ()),
        (2, "true", ("parallel.data=2", "engine.zero_stage=3")),
        (2, "true", ("parallel.tensor=2",)),
    ):
        directory = tmp_path / str(len(found))
        directory.mkdir()
        settings = (
            *FROM,
            *EPOCHS,
            *settings_of(head, folder),
            section % features,
            *layout,
            f"run.directory={directory / 'run'}",
        )
        config = load_config(folder / "config.yaml", settings)
        figures = run_ranks(ranks, run_layout, config, 24, directory, True)[0]
        found[layout] = [losses["loss"] for losses in figures.losses]
    first, *others = found.values()
    for other in others:
        assert other == pytest.approx(first, rel=1e-5)


def test_vectors_of_rows_of_several_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They come back as they were, those of files of earlier releases too; what exceeds the memory is not kept."""
    store = FeatureStore(tmp_path, most_bytes=4 * 3 * 9)
    vectors = torch.arange(27.0).view(9, 3)
    store.add([b"a" * 16, b"b" * 16, b"a" * 16], vectors[:7], [2, 3, 2])
    assert store.get([b"c" * 16]) is None
    store.flush()
    save_file({"keys": np.full((1, 16), ord("c"), np.uint8), "vectors": vectors[8:].numpy()}, tmp_path / "old")
    data = (tmp_path / "old").read_bytes()
    (tmp_path / f"part-{hashlib.sha256(data).hexdigest()[:32]}.safetensors").write_bytes(data)
    again = FeatureStore(tmp_path, most_bytes=4 * 3 * 7)
    found = again.get([b"b" * 16, b"c" * 16, b"a" * 16])
    assert found is not None
    assert torch.equal(found, vectors[[2, 3, 4, 8, 5, 6]])
    again.add([b"d" * 16], vectors[:2], [2])
    assert again.get([b"d" * 16]) is None
    assert "takes more than 0 GiB of memory" in capsys.readouterr().err
