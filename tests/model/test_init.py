"""Initial values depend on seed, name and position alone."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmscale.parallel.init import BLOCK, build, build_hollow, draw, drawn, initial_values, initialize
from llmscale.slices.tensor_slice import TensorSlice
from tests.model.references import CONFIGS, GPT2, VOCAB

SIZE = 2 * BLOCK + 12345


@pytest.fixture(scope="module")
def whole() -> torch.Tensor:
    return draw(3, "blocks.0.attention.query.weight", 0.02, 0, SIZE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, SIZE), st.integers(0, SIZE))
@example(BLOCK - 1, BLOCK + 1)
@example(BLOCK, 2 * BLOCK)
@example(0, 1)
@example(5, 5)
@example(BLOCK - 7, SIZE)
def test_any_slice_drawn_alone_equals_the_whole(whole: torch.Tensor, first: int, second: int) -> None:
    start, end = sorted((first, second))
    assert torch.equal(draw(3, "blocks.0.attention.query.weight", 0.02, start, end), whole[start:end])


def test_values_are_normal(whole: torch.Tensor) -> None:
    scaled = whole.double() / 0.02
    assert scaled.mean().abs() < 5 / math.sqrt(SIZE)
    assert (scaled.var() - 1).abs() < 5 * math.sqrt(2 / SIZE)
    quantiles = torch.distributions.Normal(0.0, 1.0).cdf(scaled)
    histogram = torch.histc(quantiles, bins=50, min=0, max=1)
    # Pearson's statistic of 49 degrees of freedom: its standard deviation is sqrt(98).
    assert ((histogram - SIZE / 50) ** 2 / (SIZE / 50)).sum() < 49 + 6 * math.sqrt(98)


def test_blocks_names_and_seeds_are_independent(whole: torch.Tensor) -> None:
    others = [
        whole[BLOCK : 2 * BLOCK],
        draw(3, "blocks.1.attention.query.weight", 0.02, 0, BLOCK),
        draw(4, "blocks.0.attention.query.weight", 0.02, 0, BLOCK),
    ]
    for other in others:
        assert torch.corrcoef(torch.stack([whole[:BLOCK], other]))[0, 1].abs() < 6 / math.sqrt(BLOCK)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_does_not_depend_on_how_it_is_built(name: str) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = build(CONFIGS[name], VOCAB, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = build(CONFIGS[name], VOCAB, seed=99)
    initialize(second, seed=3)
    second_values = dict(second.named_parameters())
    for key, value in first.named_parameters():
        assert torch.equal(value, second_values[key]), key
        assert torch.equal(value.flatten()[3:17], initial_values(first.config, 3, key, 3, 17)), key


def test_spread_by_kind() -> None:
    model = build(GPT2.model_copy(update={"hidden_size": 240}), VOCAB, seed=3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.all(parameter == 0)
        elif "norm" in name:
            assert torch.all(parameter == 1)
        else:
            residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            expected = 0.02 / math.sqrt(2 * GPT2.layers) if residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name


def test_padding_does_not_change_the_rows() -> None:
    small, large = (
        build(GPT2.model_copy(update={"vocab_multiple": multiple}), VOCAB, seed=3).embedding.weight
        for multiple in (1, 512)
    )
    assert (len(small), len(large)) == (VOCAB, 512)
    assert torch.equal(small, large[:VOCAB])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_range_of_any_rectangle_is_that_of_the_whole(data: st.DataObject) -> None:
    """What a rank draws for itself under tensor parallelism and ZeRO 3; the first shape has more than two blocks."""
    name, config = "blocks.0.attention.query.weight", CONFIGS[next(iter(CONFIGS))]
    shape = data.draw(st.sampled_from([(301, 7001), (5, 7, 11), (13,), (1, 1)]))
    offsets = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    sizes = tuple(data.draw(st.integers(1, size - low)) for size, low in zip(shape, offsets, strict=True))
    start, end = sorted(data.draw(st.integers(0, math.prod(sizes))) for _ in range(2))
    whole = initial_values(config, 3, name, 0, math.prod(shape)).view(shape)
    part = whole[tuple(slice(low, low + size) for low, size in zip(offsets, sizes, strict=True))]
    found = drawn(config, 3)(name, TensorSlice(shape, offsets, sizes, start, end))
    assert torch.equal(found, part.flatten()[start:end])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hollow_model_has_shapes_ties_and_no_memory(name: str) -> None:
    hollow, built = build_hollow(CONFIGS[name], VOCAB), build(CONFIGS[name], VOCAB, seed=3)
    theirs = dict(built.named_parameters())
    mine = dict(hollow.named_parameters())
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in theirs.items()}
    assert all(value.untyped_storage().nbytes() == value.element_size() for value in mine.values())
    assert (hollow.head.weight is hollow.embedding.weight) == (built.head.weight is built.embedding.weight)
