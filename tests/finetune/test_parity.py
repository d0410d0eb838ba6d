"""Fine-tuning beside a plain loop over transformers' model: the same initial weights, the same batches."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks import finetune_parity
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.interface import Run
from tests.train.forked import run
from tests.train.runs import metrics
from tests.train.test_classification import write_run

STEPS, RATE, CLIP = 50, 3e-3, 0.5
COMMON = (f"train.steps={STEPS}", f"optimizer.lr={RATE}", f"optimizer.clip={CLIP}", "logging.interval=1",
          "schedule.name=constant", "schedule.warmup_steps=0", "evaluation.interval=0",
          "model.next_sentence=false")  # fmt: skip
MODES = {
    "all": "",
    "head": "bert.embeddings bert.encoder",
    "{train: layers, layers: 1}": "bert.embeddings bert.encoder.layer.0",
    "encoder": "bert.pooler classifier",
}
"""Each section, and how the names begin of what transformers' model has frozen."""


def inputs_of(batch: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": batch.inputs, "attention_mask": batch.encoder_weights, "token_type_ids": batch.segment_ids}


def compare(folder: Path, name: str, section: str, frozen: tuple[str, ...]) -> tuple[float, float]:
    """The largest relative difference of a loss, and how many predictions of the two models agree."""
    tuned = ("config.yaml", *COMMON, "train.init_from=base", f"finetune={section}", f"run.directory={name}")
    done = run("train", *tuned, cwd=folder, OMP_NUM_THREADS=1)
    assert done.returncode == 0, done.stderr
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "exported")
    ours = [loss for _, loss, _ in metrics(folder / name)]
    described = Run(folder / name / "config.yaml")
    size = described.config.train.global_batch
    with described.loader() as loader:
        batches = (loader.take(size)[0] for _ in range(STEPS))
        labelled = ({**inputs_of(each), "labels": each.labels["classification"]} for each in batches)
        theirs = finetune_parity.plain_loop(model, labelled, RATE, CLIP, frozen)
        batch, _ = loader.take(100)
    export_checkpoint(folder / name, folder / f"{name}-exported")
    mine = transformers.AutoModelForSequenceClassification.from_pretrained(folder / f"{name}-exported")
    with torch.no_grad():
        answers = [each.eval()(**inputs_of(batch)).logits.argmax(1) for each in (model, mine)]
    assert len(ours) == STEPS
    assert ours[0] != ours[-1]
    return finetune_parity.largest_difference(ours, theirs), float((answers[0] == answers[1]).float().mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    write_run(folder)
    made = run("train", "config.yaml", "train.steps=2", "run.directory=base", "model.next_sentence=false", cwd=folder)
    assert made.returncode == 0, made.stderr
    export_checkpoint(folder / "base", folder / "exported")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("section", MODES)
def test_bert_is_trained_as_by_transformers(folder: Path, section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    written = section if section.startswith("{") else f"{{train: {section}}}"
    name = f"tuned-{list(MODES).index(section)}"
    worst, agree = compare(folder, name, written, tuple(MODES[section].split()))
    assert worst < 1e-4
    assert agree >= 0.99


@pytest.mark.slow
def test_a_head_for_other_labels_is_refused(folder: Path) -> None:
    """Also in another order, where all shapes fit."""
    for labels in ('["1", "0"]', '["0", "1", "坏"]'):
        tuned = (*COMMON, "train.init_from=base", f"objective.labels={labels}", "run.directory=labels", "train.steps=1")
        done = run("train", "config.yaml", *tuned, cwd=folder)
        assert done.returncode == 2, done.stderr
        last = done.stderr.splitlines()[-1]
        assert "has a head for the labels ['0', '1']" in last
        assert "finetune.redraw=[head]" in last
    done = run("train", "config.yaml", *tuned, "finetune={redraw: [head]}", cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_t5_is_trained_as_by_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On pairs of lines, which transformers' tokenizer reads for itself; micro batches here, whole ones there."""
    draw = random.Random(5)
    words = {"".join(draw.choices("abcdeü", k=5)): "".join(draw.choices("klmno", k=5)) for _ in range(60)}
    sources = [draw.choices(list(words), k=draw.randint(2, 9)) for _ in range(460)]
    pairs = [(" ".join(source), " ".join(words[word] for word in reversed(source))) for source in sources]

    def train(*given: str) -> None:
        done = run("train", *given, "run.threads=1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    sizes = {"layers": 2, "hidden_size": 32, "heads": 2, "ffn_size": 64}
    config = finetune_parity.settings(sizes, vocabulary=300, batch=16, micro_batch=4, rate=1e-3)
    monkeypatch.chdir(tmp_path)
    found = finetune_parity.compare(tmp_path, config, pairs[:400], pairs[400:], STEPS, train)
    assert found["steps"] == STEPS
    assert found["last_loss"] < 0.9 * found["first_loss"]
    assert found["largest_relative_difference"] < 1e-4
    assert found["agreement"] >= 0.99
