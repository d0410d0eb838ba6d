"""Sequence classification beside transformers' classes: logits both ways, a training loop, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from llmscale import families
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.hugging_face.classes import table_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.objectives.loss import build_loss
from tests.hugging_face.references import BYTES, CASES, CONTEXT, VOCAB, config_of, randomized, save

FAMILIES = [name for name in families.with_class() if "classification" in table_of(name).heads and name in CASES]
FORMS = ("bert", "gpt2", "roberta", "modernbert", "modernbert_biased", "modernbert_mean", "t5", "mt5")
"""Cases with heads of a form of their own, and ModernBERT's with a mean."""
LABELS = {"single_label": ["bad", "good", "odd"], "multi_label": ["x", "y", "z"], "regression": ["stars"]}
LENGTHS = torch.tensor([CONTEXT, 3, 11])


def reference(name: str, problem: str = "single_label") -> Any:
    config = config_of(name.removesuffix("_mean"))
    if name.endswith("_mean"):
        config.classifier_pooling = "mean"
    if name == "roberta":
        config.type_vocab_size = 1  # as it was published
    config.id2label = dict(enumerate(LABELS[problem]))
    config.label2id = {label: output for output, label in enumerate(LABELS[problem])}
    config.problem_type = {"regression": "regression"}.get(problem, f"{problem}_classification")
    torch.manual_seed(5)
    return randomized(name, transformers.AutoModelForSequenceClassification.from_config(config))


def imported(theirs: nn.Module, folder: Path) -> TrainedModel:
    import_directory(save(theirs, folder / "hf"), folder / "ours", tokenizer=BYTES)
    return load_model(folder / "ours")


def batch_of(trained: TrainedModel, labels: Tensor, seed: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    places = torch.arange(CONTEXT)
    real = (places < LENGTHS[:, None]).float()
    inputs = torch.randint(3, VOCAB, (3, CONTEXT), generator=draw) * real.long()
    if trained.config.model.architecture == "encoder_decoder":
        # transformers' class finds the end of a text by its token, 2.
        inputs[torch.arange(3), LENGTHS - 1] = 2
        arrays = {"encoder_inputs": inputs, "inputs": torch.cat([torch.zeros(3, 1).long(), inputs[:, :-1]], 1)}
    else:
        arrays = {"inputs": inputs}
    types = (places >= LENGTHS[:, None] // 2).long() * real.long()
    encodes = trained.config.model.architecture == "encoder"
    return Batch(
        **arrays,
        targets=torch.zeros(3, 1, dtype=torch.int64),
        weights=torch.ones(3, 1),
        sample_ids=torch.arange(3),
        encoder_weights=real,
        segment_ids=types if encodes else None,
        labels={"classification": labels},
    )


def labels_of(problem: str, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    match problem:
        case "single_label":
            return torch.randint(3, (3,), generator=draw)
        case "multi_label":
            return torch.randint(2, (3, 3), generator=draw).float()
        case _:
            return torch.randn(3, 1, generator=draw)


def their_output(theirs: nn.Module, batch: Batch) -> Any:
    types = {"token_type_ids": batch.segment_ids} if theirs.config.model_type == "bert" else {}
    return theirs(
        input_ids=batch.inputs if batch.encoder_inputs is None else batch.encoder_inputs,
        attention_mask=batch.encoder_weights.long(),
        labels=batch.labels["classification"],
        **types,
    )


def our_logits(trained: TrainedModel, batch: Batch) -> Tensor:
    loss = build_loss(trained.config.objective, trained.config.model)
    hidden = loss.output(trained.model, batch).hidden
    return loss.heads[0].logits(trained.model.classification, hidden, batch)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "problem"),
    [*((name, "single_label") for name in dict.fromkeys((*FAMILIES, *FORMS)))]
    + [(name, problem) for name in FORMS for problem in ("multi_label", "regression")],
)
def test_logits_and_losses_are_equal_both_ways(name: str, problem: str, tmp_path: Path) -> None:
    theirs = reference(name, problem).eval()
    trained = imported(theirs, tmp_path)
    assert trained.config.objective.labels == LABELS[problem]  # type: ignore[attr-defined]
    assert trained.config.objective.problem == problem  # type: ignore[attr-defined]
    batch = batch_of(trained, labels_of(problem))
    with torch.no_grad():
        expected = their_output(theirs, batch)
        torch.testing.assert_close(our_logits(trained, batch), expected.logits, rtol=1e-5, atol=1e-5)
        loss = build_loss(trained.config.objective, trained.config.model)(trained.model, batch)[0] / 3
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-6)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", with_tokenizer=False)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(theirs)
    assert again.config.id2label == dict(enumerate(LABELS[problem]))
    assert again.config.problem_type == theirs.config.problem_type
    for (key, ours), (other, wanted) in zip(again.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == other
        assert torch.equal(ours, wanted), key


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta", "modernbert_mean", "t5"])
def test_twenty_steps_beside_a_transformers_loop(name: str, tmp_path: Path) -> None:
    theirs = reference(name).train()
    trained = imported(theirs, tmp_path)
    trained.model.train()
    loss = build_loss(trained.config.objective, trained.config.model)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (trained.model, theirs)]
    for step in range(20):
        batch = batch_of(trained, labels_of("single_label", step), seed=step)
        losses = loss(trained.model, batch)[0] / 3, their_output(theirs, batch).loss
        for value, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4), step


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "id2label is"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label is"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking', but must be single_label_classification or"),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier\.(weight|bias) in .* has shape"),
    ],
)
def test_a_config_that_cannot_be(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(reference("bert"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=words):
        import_directory(folder, tmp_path / "ours", tokenizer=BYTES)
