"""Mixture of experts beside loops written from the papers, and what a batch may not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale.config import ModelConfig
from llmscale.model.experts import Experts
from llmscale.parallel.init import build

SIZES = {"layers": 2, "hidden_size": 16, "heads": 2, "max_positions": 32, "init_std": 0.4}


def layer(activation: str = "gelu_tanh", **experts: Any) -> Experts:
    """A layer of experts with large random weights and biases."""
    config = ModelConfig(**SIZES, ffn_size=24, activation=activation, experts={"count": 5, **experts})
    torch.manual_seed(3)
    made = Experts(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made.train()


def inputs(batch: int = 3, length: int = 13) -> tuple[Tensor, Tensor]:
    """Hidden states, and which tokens are real: all of the first row, fewer of the others, on either side."""
    hidden = torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(1))
    real = torch.ones(batch, length, dtype=torch.bool)
    real[1, 9:] = False
    real[2, :5] = False
    return hidden, real


def expert_output(made: Experts, expert: int, token: Tensor) -> Tensor:
    """One feed-forward layer, with the weights of one expert."""
    up = F.linear(token, made.up.weight[expert], made.up.bias[expert])
    if made.gate is not None:
        up = F.silu(F.linear(token, made.gate.weight[expert], made.gate.bias[expert])) * up
    else:
        up = F.gelu(up, approximate="tanh")
    return F.linear(up, made.down.weight[expert], made.down.bias[expert])


def by_loops(
    made: Experts, hidden: Tensor, real: Tensor, documents: Tensor | None = None
) -> tuple[Tensor, Tensor, int]:
    """Output, router loss of each sequence, and how many choices found no room: token by token, expert by expert.

    Shazeer et al. 2017, section 2.1 (top k); capacity of a document (B, T), or of a sequence, given out token by token;
    Switch Transformer, equations 4 to 6; ST-MoE, equation 5.
    """
    documents = torch.zeros_like(real, dtype=torch.long) if documents is None else documents
    settings = made.settings
    output, losses, dropped = torch.zeros_like(hidden), [], 0
    for row in range(hidden.shape[0]):
        taken: dict[tuple[int, int], int] = {}
        chosen_by, mean_probability, squares = [0] * settings.count, [0.0] * settings.count, 0.0
        tokens = int(real[row].sum())
        for place in range(hidden.shape[1]):
            token, document = hidden[row, place], int(documents[row, place])
            room = math.inf
            if settings.capacity_factor is not None and made.training:
                members = int((real[row] & (documents[row] == document)).sum())
                room = math.ceil(settings.capacity_factor * members * settings.per_token / settings.count)
            logits = [float(weight @ token) for weight in made.router.weight]
            total = sum(math.exp(logit) for logit in logits)
            probabilities = [math.exp(logit) / total for logit in logits]
            best = sorted(range(settings.count), key=lambda expert: -probabilities[expert])[: settings.per_token]
            weights = [probabilities[expert] for expert in best]
            if settings.normalize:
                weights = [weight / sum(weights) for weight in weights]
            for expert, weight in zip(best, weights, strict=True):
                if real[row, place]:
                    chosen_by[expert] += 1
                    taken[document, expert] = taken.get((document, expert), 0) + 1
                    if taken[document, expert] > room:
                        dropped += 1
                        continue
                output[row, place] += weight * expert_output(made, expert, token)
            if real[row, place]:
                squares += math.log(total) ** 2 / tokens
                for expert in range(settings.count):
                    mean_probability[expert] += probabilities[expert] / tokens
        fractions = [count / (tokens * settings.per_token) for count in chosen_by]
        balance = settings.count * sum(f * p for f, p in zip(fractions, mean_probability, strict=True))
        losses.append(settings.balance_weight * balance + settings.z_weight * squares)
    return output, torch.tensor(losses), dropped


@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu"])
@pytest.mark.parametrize(
    "experts",
    [
        {"per_token": 1, "normalize": False, "balance_weight": 0.3},
        {"per_token": 2, "balance_weight": 0.2, "z_weight": 0.1},
        {"per_token": 3, "normalize": False, "z_weight": 1.0, "balance_weight": 0.0},
        {"per_token": 2, "capacity_factor": 1.0, "balance_weight": 1.0},
        {"per_token": 1, "capacity_factor": 0.6},
    ],
)
def test_mixing_losses_and_capacity_equal_the_loops(activation: str, experts: dict[str, Any]) -> None:
    made = layer(activation, **experts)
    hidden, real = inputs()
    with torch.no_grad():
        output, losses = made(hidden, real)
        expected, expected_losses, dropped = by_loops(made, hidden, real)
    torch.testing.assert_close(output[real], expected[real], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.double(), expected_losses.double(), rtol=1e-5, atol=1e-6)
    assert (dropped > 0) == (made.settings.capacity_factor is not None)


@pytest.mark.parametrize("factor", [0.4, 0.7, 1.0, 1.3])
@pytest.mark.parametrize("per_token", [1, 2])
def test_separate_documents_have_capacities_of_their_own(factor: float, per_token: int) -> None:
    made = layer(per_token=per_token, capacity_factor=factor, balance_weight=0.4)
    hidden, real = inputs(length=17)
    choose = torch.Generator().manual_seed(int(factor * 10) + per_token)
    for _ in range(5):
        documents = (torch.rand(real.shape, generator=choose) < 0.3).cumsum(1)
        with torch.no_grad():
            output, losses = made(hidden, real, documents)
            expected, expected_losses, dropped = by_loops(made, hidden, real, documents)
        torch.testing.assert_close(output[real], expected[real], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses.double(), expected_losses.double(), rtol=1e-5, atol=1e-6)
        assert dropped or factor > 1


def test_a_document_does_not_feel_its_neighbours() -> None:
    config = ModelConfig(**SIZES, experts={"count": 4, "per_token": 2, "capacity_factor": 0.8})
    model = build(config, 50, seed=2).train()
    ids = torch.randint(50, (2, 14), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([0] * 6 + [1] * 8).expand(2, -1)
    positions = torch.cat([torch.arange(6), torch.arange(8)]).expand(2, -1)
    with torch.no_grad():
        together = model(ids, positions, documents).hidden
        alone = [model(part).hidden for part in (ids[:, :6], ids[:, 6:])]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


def test_capacity_acts_in_training_only() -> None:
    made = layer(per_token=2, capacity_factor=0.5).eval()
    free = layer(per_token=2)
    hidden, real = inputs()
    with torch.no_grad():
        assert torch.equal(made(hidden, real)[0], free(hidden, real)[0])
        assert not torch.allclose(made.train()(hidden, real)[0][real], free(hidden, real)[0][real])


def test_the_balance_loss_is_one_at_perfect_balance() -> None:
    made = layer(per_token=2, balance_weight=1.0)
    with torch.no_grad():
        made.router.weight.zero_()
        _, losses = made(*inputs())
    torch.testing.assert_close(losses, torch.ones(3))


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_a_sequence_does_not_feel_its_batch(capacity: float | None) -> None:
    config = ModelConfig(**SIZES, experts={"count": 4, "per_token": 2, "capacity_factor": capacity, "z_weight": 0.1})
    model = build(config, 50, seed=2).train()
    ids = torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(0))
    real = torch.arange(12) < torch.tensor([12, 7, 10, 3])[:, None]
    with torch.no_grad():
        together = model(ids, padding_mask=real)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = model(ids[order], padding_mask=real[order])
        for row, length in enumerate([12, 7, 10, 3]):
            alone = model(ids[row : row + 1], padding_mask=real[row : row + 1])
            without = model(ids[row : row + 1, :length])
            place = int((order == row).nonzero())
            for other in (alone, without):
                torch.testing.assert_close(
                    other.hidden[0, :length], together.hidden[row, :length], rtol=1e-5, atol=1e-5
                )
                torch.testing.assert_close(other.router_loss[0], together.router_loss[row])
            torch.testing.assert_close(shuffled.hidden[place], together.hidden[row], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(shuffled.router_loss[place], together.router_loss[row])
