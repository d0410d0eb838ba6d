"""The head of classification beside plain torch: values, gradients, measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.objectives.classification import ClassificationObjective
from llmscale.config.model import HeadConfig
from llmscale.model import Dropout
from llmscale.objectives.loss import build_loss
from llmscale.parallel.init import build
from tests.model.references import GPT2, VOCAB

LENGTHS = torch.tensor([7, 3, 5, 7])
NAMES = ["a", "b", "c"]


def case(problem: str, pooling: str, architecture: str, dropout: float = 0.0) -> tuple[Any, Any, Batch]:
    """A loss, its model with large weights in double precision, and a batch whose third sample has no label."""
    objective = ClassificationObjective(labels=NAMES, problem=problem, pooling=pooling, dropout=dropout)
    settings = {"architecture": architecture, "head": HeadConfig(**objective.head(architecture)), "init_std": 0.3}
    config = GPT2.model_copy(update=settings)
    model = build(config, VOCAB, seed=1).double()
    draw = torch.Generator().manual_seed(2)
    labels = torch.tensor([2, 0, -1, 1])
    if problem != "single_label":
        labels = torch.randint(2, (4, 3), generator=draw).double() if problem == "multi_label" else torch.randn(4, 3)
        labels[2] = torch.nan
    weights = (torch.arange(7) < LENGTHS[:, None]).float()
    batch = Batch(
        torch.randint(VOCAB, (4, 7), generator=draw),
        torch.zeros(4, 1, dtype=torch.int64),
        torch.ones(4, 1),
        torch.arange(4),
        encoder_weights=weights,
        labels={"classification": labels},
    )
    return build_loss(objective, config), model, batch


def logits_of(model: Any, batch: Batch, pooling: str) -> Tensor:
    """Written out, a sample at a time and without padding."""
    rows = []
    for tokens, length in zip(batch.inputs, LENGTHS.tolist(), strict=True):
        hidden = model(tokens[None, :length]).hidden[0]
        vector = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[pooling]
        head = model.classification
        if head.pooler is not None:
            vector = (vector @ head.pooler.weight.T + head.pooler.bias).tanh()
        rows.append(vector @ head.classifier.weight.T + (0 if head.classifier.bias is None else head.classifier.bias))
    return torch.stack(rows)


@pytest.mark.parametrize("problem", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize(
    ("pooling", "architecture"), [("first", "encoder"), ("last", "decoder"), ("mean", "encoder"), ("mean", "decoder")]
)
def test_loss_and_gradients_are_those_of_plain_torch(problem: str, pooling: str, architecture: str) -> None:
    loss, model, batch = case(problem, pooling, architecture)
    logits = logits_of(model, batch, pooling)
    known, labels = torch.tensor([0, 1, 3]), batch.labels["classification"]
    mean = {
        "single_label": F.cross_entropy,
        "multi_label": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[problem]
    expected = mean(logits[known], labels[known] if problem == "single_label" else labels[known].double())
    model.train()
    (total,) = loss(model, batch)
    assert loss.counts(batch) == [3.0]
    torch.testing.assert_close(total / 3, expected)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (total / 3, expected))
    torch.testing.assert_close(ours, theirs)
    model.eval()
    _, measured = loss(model, batch)
    if problem == "regression":
        right = (logits[known] - labels[known]).abs().mean(1).sum()
    elif problem == "multi_label":
        right = ((logits[known].sigmoid() > 0.5) == labels[known].bool()).all(1).sum()
    else:
        right = (logits[known].argmax(1) == labels[known]).sum()
    assert float(measured.detach()) == pytest.approx(float(right.detach()), rel=1e-6)


def test_dropout_depends_on_the_sample_alone() -> None:
    loss, model, batch = case("single_label", "first", "encoder", dropout=0.5)
    model.train()
    dropout = Dropout.of(5, batch.sample_ids)
    with torch.no_grad():
        whole = loss(model, batch, dropout)[0]
        parts = [loss(model, part, Dropout.of(5, part.sample_ids))[0] for part in batch.split(2)]
        assert not torch.isclose(whole, loss(model, batch)[0])
    torch.testing.assert_close(whole, sum(parts))
