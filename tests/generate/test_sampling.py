"""What is drawn, beside a brute-force computation of the distribution."""

import math

import pytest
import torch

from data_pipeline.errors import UserError
from llmscale.generate import Sampler

LOGITS = [2.0, -1.0, 0.5, 3.0, -torch.inf, 0.0, 1.9, -4.0]


def brute_force(temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by sorting tokens in plain Python."""
    weights = [math.exp(logit / temperature) for logit in LOGITS]
    order = sorted(range(len(LOGITS)), key=lambda token: -weights[token])
    kept = order[: top_k or len(order)]
    total = sum(weights[token] for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        nucleus.append(token)
        mass += weights[token] / total
        if mass >= top_p:
            break
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(LOGITS))]


SETTINGS = [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 3, 1.0), (1.0, 1, 1.0), (1.0, 0, 0.6), (0.7, 0, 0.95), (1.5, 4, 0.8),
            (1.0, 50, 0.01)]  # fmt: skip


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_distribution(temperature: float, top_k: int, top_p: float) -> None:
    sampler = Sampler(temperature, top_k, top_p, seed=4)
    expected = torch.tensor(brute_force(temperature, top_k, top_p))
    shuffled = torch.randperm(len(LOGITS), generator=torch.Generator().manual_seed(1))
    logits = torch.tensor(LOGITS)
    rows = torch.stack([logits, logits[shuffled]])
    torch.testing.assert_close(sampler.probabilities(rows), torch.stack([expected, expected[shuffled]]))
    draws = 20000
    counts = torch.bincount(sampler.choose(logits.expand(draws, -1)), minlength=len(LOGITS))
    assert torch.all(counts[expected == 0] == 0)
    deviation = (counts - draws * expected).abs()
    assert torch.all(deviation <= 5 * (draws * expected * (1 - expected)).sqrt() + 1e-6)


def test_temperature_zero_is_greedy() -> None:
    assert Sampler(temperature=0).choose(torch.tensor([LOGITS, LOGITS[::-1]])).tolist() == [3, 4]


def test_a_seed_decides_the_draws_and_nothing_else_does() -> None:
    logits = torch.zeros(1, 1000)

    def draws(seed: int, disturbance: int) -> list[int]:
        torch.manual_seed(disturbance)
        sampler = Sampler(seed=seed)
        return [int(sampler.choose(logits)) for _ in range(20)]

    assert draws(1, 0) == draws(1, 77) != draws(2, 0)


@pytest.mark.parametrize(("setting", "value"), [("temperature", -0.1), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5)])
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{setting} is {value}"):
        Sampler(**{setting: value})
