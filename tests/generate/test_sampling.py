"""What is drawn, beside a brute-force computation of the distribution."""

import math
from collections.abc import Sequence

import pytest
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.random import uniforms
from data_pipeline.tokenizer import BytesTokenizer
from llmscale.generate import Settings
from llmscale.generate.sampling import choose, draws_of, penalized, probabilities

LOGITS = [2.0, -1.0, 0.5, 3.0, -torch.inf, 0.0, 1.9, -4.0]
SEEN = [0, 1, 5, 7]


def penalized_by_hand(penalty: float) -> list[float]:
    """Keskar et al. 2019, section 4.1, with negative scores multiplied."""
    found = list(LOGITS)
    for token in SEEN:
        found[token] = LOGITS[token] / penalty if LOGITS[token] > 0 else LOGITS[token] * penalty
    return found


def brute_force(logits: Sequence[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Probabilities by sorting tokens in plain Python."""
    weights = [math.exp(logit / temperature) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: -weights[token])
    kept = order[: top_k or len(order)]
    total = sum(weights[token] for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        nucleus.append(token)
        mass += weights[token] / total
        if mass >= top_p:
            break
    total = sum(weights[token] for token in nucleus)
    return [weights[token] / total if token in nucleus else 0.0 for token in range(len(logits))]


CASES = [(1.0, 0, 1.0, 1.0), (0.5, 0, 1.0, 1.0), (2.0, 3, 1.0, 1.0), (1.0, 1, 1.0, 1.0), (1.0, 0, 0.6, 1.0),
         (0.7, 0, 0.95, 1.0), (1.5, 4, 0.8, 1.0), (1.0, 50, 0.01, 1.0), (1.0, 0, 1.0, 1.7), (0.8, 4, 0.9, 1.3),
         (1.0, 0, 1.0, 0.6)]  # fmt: skip


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "penalty"), CASES)
def test_distribution(temperature: float, top_k: int, top_p: float, penalty: float) -> None:
    settings = Settings(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    expected = torch.tensor(brute_force(penalized_by_hand(penalty), temperature, top_k, top_p))
    shuffled = torch.randperm(len(LOGITS), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(len(LOGITS), dtype=torch.bool)
    seen[SEEN] = True
    rows = torch.stack([torch.tensor(LOGITS), torch.tensor(LOGITS)[shuffled]])
    scores = penalized(rows, torch.stack([seen, seen[shuffled]]), penalty)
    torch.testing.assert_close(probabilities(scores, settings), torch.stack([expected, expected[shuffled]]))
    draws = 20000
    uniform = torch.from_numpy(uniforms(draws, "test", 4))
    counts = torch.bincount(choose(scores[0].expand(draws, -1), settings, uniform), minlength=len(LOGITS))
    assert torch.all(counts[expected == 0] == 0)
    deviation = (counts - draws * expected).abs()
    assert torch.all(deviation <= 5 * (draws * expected * (1 - expected)).sqrt() + 1e-6)


def test_the_ends_of_the_interval_draw_possible_tokens() -> None:
    """Tokens of probability 0 stand first and last, and sums need not be exactly 1."""
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)) * 5
    logits[:, :7] = logits[:, -9:] = -torch.inf
    for end, expected in ((0.0, 7), (1 - 2**-53, 990)):
        chosen = choose(logits, Settings(temperature=1.0), torch.full((50,), end, dtype=torch.float64))
        assert chosen.tolist() == [expected] * 50


def test_temperature_zero_is_greedy() -> None:
    assert choose(torch.tensor([LOGITS, LOGITS[::-1]]), Settings()).tolist() == [3, 4]


def test_draws_depend_on_seed_and_prompt_alone() -> None:
    settings = Settings(temperature=1.0, max_new_tokens=50, seed=3)
    first, second, copy = draws_of([[5, 6], [7], [5, 6]], settings)
    torch.manual_seed(77)
    assert torch.equal(draws_of([[7]], settings)[0], second)
    assert torch.equal(draws_of([[8], [5, 6]], settings)[1], first)
    assert len({row.sum().item() for row in (first, second, copy)}) == 3
    other = draws_of([[7]], Settings(temperature=1.0, max_new_tokens=50, seed=4))[0]
    assert not torch.equal(other, second)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -0.1), ("temperature", math.nan), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5),
     ("repetition_penalty", 0.0), ("beams", 0), ("batch", 0), ("max_new_tokens", 0), ("length_penalty", math.inf)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{setting} is {value}"):
        Settings(**{setting: value})


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(UserError, match=r"beams is 2 and temperature is 0\.5, but beam search does not sample"):
        Settings(beams=2, temperature=0.5)
    with pytest.raises(UserError, match="stop holds an empty text"):
        Settings(stop=("",))
    for token in (259, -1):
        with pytest.raises(UserError, match=f"stop token {token} is outside .* 259 tokens are 0 to 258"):
            Settings(stop_tokens=(token,)).ends(BytesTokenizer())
    assert Settings(stop_tokens=(9, 2)).ends(BytesTokenizer()) == [2, 9]
