"""Token labels and spans beside transformers' classes: logits both ways, training loops, older files, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from llmscale import families
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.hugging_face.classes import table_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.objectives.loss import build_loss
from tests.hugging_face.references import BYTES, CASES, CONTEXT, VOCAB, config_of, randomized, save

LABELS = ["O", "B-PER", "I-PER"]
AUTO = {
    "token_classification": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
}
LENGTHS = torch.tensor([CONTEXT, 7, 11])
PAIRS = [
    (family, head)
    for family in families.with_class()
    for head in AUTO
    if head in table_of(family).heads and family in CASES
]


def reference(name: str, head: str) -> Any:
    config = config_of(name)
    if head == "token_classification":
        config.id2label = dict(enumerate(LABELS))
        config.label2id = {label: output for output, label in enumerate(LABELS)}
        config.classifier_dropout = 0.0
    torch.manual_seed(5)
    return randomized(name, AUTO[head].from_config(config))


def imported(theirs: nn.Module, folder: Path) -> TrainedModel:
    import_directory(save(theirs, folder / "hf"), folder / "ours", tokenizer=BYTES)
    return load_model(folder / "ours")


def batch_of(trained: TrainedModel, head: str, seed: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    places = torch.arange(CONTEXT)
    real = (places < LENGTHS[:, None]).float()
    inputs = torch.randint(1, VOCAB, (3, CONTEXT), generator=draw) * real.long()
    types = (places >= LENGTHS[:, None] // 2).long() * real.long()
    if head == "span":
        labels = torch.randint(7, (3, 2), generator=draw)
        weights = torch.ones(3, 1)
    else:
        labels = torch.randint(-1, 3, (3, CONTEXT), generator=draw).masked_fill(real == 0, -1)
        weights = (labels >= 0).float()
    encodes = trained.config.model.architecture == "encoder"
    two = trained.config.model.architecture == "encoder_decoder"
    return Batch(
        torch.cat([torch.zeros(3, 1).long(), inputs[:, :-1]], 1) if two else inputs,
        torch.zeros(weights.shape, dtype=torch.int64),
        weights,
        torch.arange(3),
        encoder_inputs=inputs if two else None,
        encoder_weights=real,
        segment_ids=types if encodes else None,
        labels={head: labels},
    )


def their_output(theirs: nn.Module, batch: Batch, head: str) -> tuple[Tensor, Tensor]:
    """Logits (B, T, outputs) and the loss."""
    more = {"token_type_ids": batch.segment_ids} if theirs.config.model_type in ("bert", "roberta") else {}
    texts = batch.inputs if batch.encoder_inputs is None else batch.encoder_inputs
    labels = batch.labels[head]
    more |= (
        {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
        if head == "span"
        else {"labels": labels.masked_fill(labels < 0, -100)}
    )
    found = theirs(input_ids=texts, attention_mask=batch.encoder_weights.long(), **more)
    if head != "span":
        return found.logits, found.loss
    logits = torch.stack([found.start_logits, found.end_logits], -1)
    if bool((batch.encoder_weights > 0).all()):
        return logits, found.loss
    # Their loss has padding among the positions.
    kept = logits.masked_fill((batch.encoder_weights <= 0)[..., None], -torch.inf)
    return logits, (F.cross_entropy(kept[..., 0], labels[:, 0]) + F.cross_entropy(kept[..., 1], labels[:, 1])) / 2


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_logits_and_losses_are_equal_both_ways(name: str, head: str, tmp_path: Path) -> None:
    theirs = reference(name, head).eval()
    trained = imported(theirs, tmp_path)
    if head == "token_classification":
        assert trained.config.objective.labels == LABELS  # type: ignore[attr-defined]
        assert trained.config.objective.scheme == "bio"  # type: ignore[attr-defined]
    batch = batch_of(trained, head)
    loss = build_loss(trained.config.objective, trained.config.model)
    real = batch.encoder_weights > 0
    with torch.no_grad():
        logits, expected = their_output(theirs, batch, head)
        hidden = loss.output(trained.model, batch).hidden
        ours = loss.heads[0].logits(getattr(trained.model, head), hidden, batch)  # type: ignore[attr-defined]
        torch.testing.assert_close(ours[real], logits[real], rtol=1e-5, atol=1e-5)
        value = loss(trained.model, batch)[0] / loss.counts(batch)[0]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", with_tokenizer=False)
    again = AUTO[head].from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(theirs)
    if head == "token_classification":
        assert again.config.id2label == dict(enumerate(LABELS))
    for (key, mine), (other, wanted) in zip(again.named_parameters(), theirs.named_parameters(), strict=True):
        assert key == other
        assert torch.equal(mine, wanted), key


@pytest.mark.parametrize(("name", "head"), [(name, head) for name in ("bert", "gpt2", "modernbert") for head in AUTO]
                         + [("t5", "token_classification")])  # fmt: skip
def test_twenty_five_steps_beside_a_transformers_loop(name: str, head: str, tmp_path: Path) -> None:
    theirs = reference(name, head).train()
    trained = imported(theirs, tmp_path)
    trained.model.train()
    loss = build_loss(trained.config.objective, trained.config.model)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (trained.model, theirs)]
    for step in range(25):
        batch = batch_of(trained, head, seed=step)
        if step % 2:  # without padding
            batch.inputs = torch.randint(1, VOCAB, batch.inputs.shape, generator=torch.Generator().manual_seed(step))
            batch.encoder_weights = torch.ones_like(batch.encoder_weights)
        losses = loss(trained.model, batch)[0] / loss.counts(batch)[0], their_output(theirs, batch, head)[1]
        for value, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4), step


def test_every_class_of_transformers_is_known() -> None:
    known = {
        "classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token_classification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "span": MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    }
    for table in map(table_of, families.with_class()):
        theirs = {head: names[table.model_type] for head, names in known.items() if table.model_type in names}
        assert {head: about.name for head, about in table.heads.items()} == theirs, table.model_type


@pytest.mark.parametrize("head", AUTO)
def test_a_pooler_of_older_files_is_left_out(head: str, tmp_path: Path) -> None:
    folder = save(reference("bert", head), tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    size = tensors["bert.embeddings.word_embeddings.weight"].shape[1]
    more = {"bert.pooler.dense.weight": torch.ones(size, size), "bert.pooler.dense.bias": torch.ones(size)}
    save_file({**tensors, **more}, folder / "model.safetensors", {"format": "pt"})
    said = import_directory(folder, tmp_path / "ours", tokenizer=BYTES)
    assert any("bert.pooler.dense" in line and "not used" in line for line in said)


def test_labels_that_cannot_be(tmp_path: Path) -> None:
    folder = save(reference("bert", "token_classification"), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "a", "2": "b"}}))
    with pytest.raises(UserError, match="id2label is"):
        import_directory(folder, tmp_path / "ours", tokenizer=BYTES)
