"""Who sees whom, by brute force over pairs of tokens, and what a model does with it."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from llmscale.config import ModelConfig
from llmscale.model import KeyValueCache
from llmscale.model.masks import AttentionMask, cross_mask
from llmscale.parallel.init import build
from tests.model.test_compile import VOCAB, draw, gradients_of, small

LENGTH = 8
DRAW = torch.Generator().manual_seed(4)
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0] * 8])
REAL = torch.rand(2, LENGTH, generator=DRAW) < 0.6
PREFIX = torch.tensor([3, 6])


@pytest.mark.parametrize("window", [None, 2, 3, 5, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_by_brute_force(causal: bool, window: int | None) -> None:
    """Every combination of what may limit them."""
    for segments, prefix, real in itertools.product((None, SEGMENTS), (None, PREFIX), (None, REAL)):
        if prefix is not None and not causal:
            continue
        mask = AttentionMask(0, LENGTH, segments, prefix, real).mask(
            causal=causal, window=window, device=torch.device("cpu")
        )
        for row, query, key in itertools.product(range(2), range(LENGTH), range(LENGTH)):
            sees = not causal or key <= query or (prefix is not None and key < prefix[row])
            if window is not None:
                sees = sees and (query - key < window if causal else abs(query - key) <= window // 2)
            if segments is not None:
                sees = sees and bool(segments[row, query] == segments[row, key])
            if real is not None:
                sees = (sees and bool(real[row, key])) or query == key
            if mask is None:
                assert sees == (not causal or key <= query)
            else:
                assert bool(mask.expand(2, 1, LENGTH, LENGTH)[row, 0, query, key]) == sees, (row, query, key)


@pytest.mark.parametrize("window", [None, 2, 3, 5])
@pytest.mark.parametrize(("past", "length"), [(0, 8), (3, 5), (7, 1), (0, 1), (2, 1)])
def test_masks_after_cached_tokens_by_brute_force(past: int, length: int, window: int | None) -> None:
    mask = AttentionMask(past, length).mask(causal=True, window=window, device=torch.device("cpu"))
    for row, key in itertools.product(range(length), range(past + length)):
        query = past + row
        sees = key <= query and (window is None or query - key < window)
        if mask is not None:
            assert bool(mask[0, 0, row, key]) == sees
        else:
            # A kernel's own causal mask starts at the first key; for one query it sees all.
            assert sees == (key <= row if past == 0 else True)


def test_cross_masks_see_real_tokens_or_all_where_there_is_none() -> None:
    real = torch.tensor([[True, False, True], [False, False, False]])
    found = cross_mask(real)
    assert found is not None
    assert found[:, 0, 0].tolist() == [[True, False, True], [True, True, True]]
    assert cross_mask(None) is None


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
@pytest.mark.parametrize("positions", ["rotary", "relative", "alibi"])
@pytest.mark.parametrize("window", [2, 3, 4])
def test_a_window_limits_what_a_layer_depends_on(window: int, positions: str, architecture: str) -> None:
    model = build(
        ModelConfig(
            architecture=architecture, layers=1, hidden_size=32, heads=4, max_positions=16, positions=positions,
            attention_pattern=["local"], window=window, init_std=0.3,
        ),
        VOCAB,
        seed=1,
    )  # fmt: skip
    ids = draw(1, 1, 9)
    with torch.no_grad():
        whole = model(ids).hidden
        for changed in range(9):
            other = ids.clone()
            other[0, changed] = (other[0, changed] + 1) % VOCAB
            differs = (model(other).hidden - whole).abs().amax(-1)[0] > 1e-6
            if architecture == "decoder":
                sees = [0 <= place - changed < window for place in range(9)]
            else:
                sees = [abs(place - changed) <= window // 2 for place in range(9)]
            assert differs.tolist() == sees


@pytest.mark.parametrize("name", ["gpt3", "gpt_neo", "mistral", "t5", "gpt2", "wu_dao"])
@pytest.mark.parametrize("parts", [[1] * 10, [6, 4], [3, 1, 5, 1]])
def test_windows_and_biases_with_a_cache(name: str, parts: list[int]) -> None:
    model = build(small(name, layers=3, init_std=0.3, init_scheme="normal"), VOCAB, seed=1).eval()
    ids, source = draw(1, 2, 10), draw(2, 2, 7)
    # A decoder only.
    given: dict[str, Any] = {}
    with torch.no_grad():
        if model.encoder is not None:
            given = {"memory": model.encode(source).hidden}
        cache = KeyValueCache(model.config, 2, 10, torch.float32, "cpu")
        found = torch.cat([model(part, cache=cache, **given).hidden for part in ids.split(parts, dim=1)], dim=1)
        torch.testing.assert_close(found, model(ids, **given).hidden, rtol=1e-4, atol=1e-5)


def padded_output(name: str, ids: Tensor, real: Tensor) -> tuple[Any, Tensor]:
    model = build(small(name, layers=2, init_std=0.2, init_scheme="normal"), VOCAB, seed=1)
    if model.encoder is not None:
        return model, model(draw(9, *ids.shape), encoder_inputs=ids, encoder_padding_mask=real).hidden
    return model, model(ids, padding_mask=real).hidden


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "gpt3", "mistral", "mixtral", "t5", "gptj"])
def test_tokens_that_fill_up_never_change_others_wherever_they_are(name: str) -> None:
    ids = draw(5, 3, 12)
    real = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    other = torch.where(real, ids, (ids + 7) % VOCAB)
    with torch.no_grad():
        _, one = padded_output(name, ids, real)
        _, two = padded_output(name, other, real)
        changed = (one - two).abs().amax(-1)
    # Of an encoder-decoder the output belongs to the decoder, whose tokens are all real.
    shown = torch.ones_like(real) if name == "t5" else real
    assert (changed[shown] < 1e-5).all()
    if name != "t5":
        assert (changed[~shown] > 1e-3).all()


@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "gpt3", "mixtral", "wu_dao", "t5", "qwen3"])
def test_rows_that_are_all_fill_are_finite(name: str) -> None:
    ids = draw(5, 3, 12)
    real = torch.zeros(3, 12, dtype=torch.bool)
    real[0, 3:] = True
    model, hidden = padded_output(name, ids, real)
    assert hidden.isfinite().all()
    for gradient in gradients_of(model, model.head(hidden, draw(6, 3, 12))):
        assert gradient is None or gradient.isfinite().all()
