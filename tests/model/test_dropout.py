"""Dropout by hash: the statistics of its masks, what they depend on, and its gradients beside explicit masks."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmscale.config import ModelConfig
from llmscale.model import Dropout, KeyValueCache, Transformer
from llmscale.model.attention.modules.core import dropped_attention
from llmscale.model.dropout import LayerDropout, Place, drop, dropped, fold
from llmscale.parallel.init import build
from tests.model.test_compile import compile_whole, gradients_of, small

VOCAB, LENGTH = 50, 12
RATE = 0.1


def mask(keys: Tensor, *shape: int, rate: float = RATE) -> Tensor:
    return dropped(keys, rate, [torch.arange(size) for size in shape])


def layers(*sample_ids: int, seed: int = 0, stack: int = 0, count: int = 4) -> list[LayerDropout]:
    return Dropout.of(seed, torch.tensor(sample_ids)).layers(stack, count)


def test_the_hash_is_that_of_plain_integers() -> None:
    """Written out with Python's unbounded integers, from the key of a sample to the mask."""

    def mix(x: int, entering: int = 0) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15 ^ entering) * 0x735A2D97 % 2**32
        return x ^ x >> 15

    def folded(key: tuple[int, int], number: int) -> tuple[int, int]:
        first = (key[0] + number * 0x9E3779B9) % 2**32
        second = key[1] ^ mix(first)
        return second, first ^ mix((second + 0x9E3779B9) % 2**32)

    seed, k, layer = 2**62 + 12345, 2**40 + 7, 2
    key = (0, 0)
    for number in (seed % 2**31, seed >> 31, k % 2**31, k >> 31, 1, 1 + 8 * layer + Place.INNER):
        key = folded(key, number)
    expected = []
    for position, channel in itertools.product(range(5), range(9)):
        first, second = folded(key, position)
        expected.append(mix((first + channel * 0x9E3779B9) % 2**32, second) < round(0.3 * 2**32))
    keys = layers(k, seed=seed, stack=1)[layer].keys[Place.INNER]
    assert mask(keys, 5, 9, rate=0.3).flatten().tolist() == expected


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate: float) -> None:
    keys = layers(3, 4)[0].keys[0]
    count = 2 * 500 * 1000
    found = mask(keys, 500, 1000, rate=rate).double().mean().item()
    assert abs(found - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
    x = torch.randn(2, 50, 10, dtype=torch.float64)
    gone = mask(keys, 50, 10, rate=rate)
    torch.testing.assert_close(drop(x, keys, rate), torch.where(gone, 0.0, x / (1 - rate)))
    assert drop(x.bfloat16(), keys, rate).dtype == torch.bfloat16


def test_every_share_of_values_is_as_likely() -> None:
    """Pearson's statistic over rows and over columns: the dropped values of each are binomial."""
    gone = mask(layers(5)[0].keys[0], 1000, 1000)[0].double()
    for dim in (0, 1):
        counts = gone.sum(dim)
        statistic = ((counts - 1000 * RATE) ** 2 / (1000 * RATE * (1 - RATE))).sum()
        assert abs(statistic - 1000) < 5 * math.sqrt(2 * 1000), dim


def test_patterns_of_neighbours_are_as_likely_as_chance_makes_them() -> None:
    """Chi-square over the 2^8 patterns of blocks of 2 positions x 4 channels."""
    gone = mask(layers(6)[1].keys[2], 2000, 1000, rate=0.5)[0].long()
    blocks = gone.view(1000, 2, 250, 4).permute(0, 2, 1, 3).reshape(-1, 8) @ (2 ** torch.arange(8))
    counts = torch.bincount(blocks, minlength=256).double()
    expected = counts.sum() / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * math.sqrt(2 * 255)


def neighbours(values: Tensor, dim: int, distance: int = 1) -> tuple[Tensor, Tensor]:
    count = values.shape[dim] - distance
    return values.narrow(dim, 0, count), values.narrow(dim, distance, count)


SHIFTS = {
    "channels": lambda: neighbours(mask(layers(1)[0].keys[0], 600, 801), 2),
    "channels-64": lambda: neighbours(mask(layers(1)[0].keys[0], 600, 864), 2, 64),
    "positions": lambda: neighbours(mask(layers(1)[0].keys[0], 601, 800), 1),
    "samples": lambda: mask(layers(1, 2)[0].keys[0], 600, 800).unbind(),
    "distant-samples": lambda: mask(layers(1, 1 + 2**33)[0].keys[0], 600, 800).unbind(),
    "layers": lambda: [mask(layer.keys[0], 600, 800) for layer in layers(1, count=2)],
    "places": lambda: [mask(layers(1)[0].keys[place], 600, 800) for place in (1, 5)],
    "stacks": lambda: [mask(layers(1, stack=stack)[0].keys[0], 600, 800) for stack in (0, 1)],
    "seeds": lambda: [mask(layers(1, seed=seed)[0].keys[0], 600, 800) for seed in (0, 1)],
    "heads": lambda: neighbours(mask(layers(1)[0].keys[0], 9, 200, 300), 1),
    "around": lambda: [mask(keys, 600, 800) for keys in Dropout.of(0, torch.tensor([1])).around(0)],
    "around-and-layers": lambda: [
        mask(Dropout.of(0, torch.tensor([1])).around(0)[0], 600, 800),
        mask(layers(1)[0].keys[0], 600, 800),
    ],
}


@pytest.mark.parametrize("name", SHIFTS)
def test_what_differs_in_one_number_is_uncorrelated(name: str) -> None:
    one, other = (part.flatten().double() for part in SHIFTS[name]())
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1].item()
    assert abs(correlation) < 5 / math.sqrt(one.numel())


def test_keys_of_many_samples_and_places_are_all_different() -> None:
    keys = torch.cat([layer.keys.flatten(0, 1) for layer in layers(*range(-1, 500), count=8)])
    assert len(keys.unique(dim=0)) == len(keys)
    words = fold(keys[:, None], torch.arange(20)).flatten(0, 1)
    assert len(words.unique(dim=0)) == len(words)
    assert words.min() >= 0
    assert words.max() < 2**32


def test_a_part_of_a_mask_is_drawn_alone() -> None:
    """What a rank with some positions, channels or heads has to compute."""
    keys = layers(1, 9)[2].keys[Place.ATTENTION]
    whole = mask(keys, 4, 20, 30)
    part = dropped(keys[1:], RATE, [torch.tensor([1, 3]), torch.arange(5, 11), torch.arange(7, 30)])
    assert torch.equal(part, whole[1:, [1, 3], 5:11, 7:])


CASES: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "booleans": {"mask": torch.arange(7) < torch.tensor([4, 7, 2])[:, None, None, None]},
    "biases": {"mask": torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)},
    "scale": {"scale": 1.0},
    "everything": {},
}


@pytest.mark.parametrize("name", CASES)
def test_explicit_attention_is_the_kernel_s(name: str) -> None:
    """At a rate of almost nothing; which keys and probabilities a higher rate drops, the next test shows."""
    case = {"mask": None, "causal": False, "scale": None} | CASES[name]
    length = 7 if case["causal"] else 5
    query = torch.randn(3, 6, length, 8, dtype=torch.float64)
    key, value = torch.randn(2, 3, 2, 7, 8, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(
        query, key, value, case["mask"], is_causal=case["causal"], scale=case["scale"], enable_gqa=True
    )
    found = dropped_attention(
        query, key, value, case["mask"], case["causal"], case["scale"], torch.zeros(3, 2, dtype=torch.int64), 0.0
    )
    torch.testing.assert_close(found, expected)


def explicit_gpt2(model: Transformer, ids: Tensor, keep: Any) -> Tensor:
    """GPT-2's forward pass with `keep(layer, place, shape)`, masks of zeros and 1 / (1 - rate), in textbook form."""
    count, length = ids.shape
    width, heads = model.config.hidden_size, model.config.heads
    x = model.embedding(ids) + model.positions(torch.arange(length))
    x = x * keep(None, "embedding", (count, length, width))
    for layer, block in enumerate(model.blocks):
        normed = block.attention_norm(x)
        query, key, value = (
            getattr(block.attention, name)(normed).view(count, length, heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(width // heads)
        scores = scores + torch.full((length, length), -torch.inf).triu(1)
        probabilities = scores.softmax(-1) * keep(layer, Place.ATTENTION, scores.shape)
        mixed = block.attention.output((probabilities @ value).transpose(1, 2).reshape(count, length, width))
        x = x + mixed * keep(layer, Place.ATTENTION_OUTPUT, x.shape)
        inner = block.feed_forward.down(F.gelu(block.feed_forward.up(block.feed_forward_norm(x)), approximate="tanh"))
        x = x + inner * keep(layer, Place.FEED_FORWARD_OUTPUT, x.shape)
    return model.norm(x)


def test_a_model_and_its_gradients_equal_explicit_masks() -> None:
    rates = {"dropout": 0.3, "attention_dropout": 0.2}
    config = ModelConfig(layers=3, hidden_size=32, heads=4, max_positions=16, vocab_multiple=16, init_std=0.2, **rates)
    model = build(config, VOCAB, seed=1).double()
    ids, targets = torch.randint(VOCAB, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    dropout = Dropout.of(7, torch.tensor([5, 900, 2**35]))
    around, inside = dropout.around(0)[0], dropout.layers(0, 3)

    def keep(layer: int | None, place: Place | str, shape: tuple[int, ...]) -> Tensor:
        rate = rates["attention_dropout" if place == Place.ATTENTION else "dropout"]
        keys = around if layer is None else inside[layer].keys[place]
        return (~mask(keys, *shape[1:], rate=rate)).double() / (1 - rate)

    found = model(ids, dropout=dropout).hidden
    expected = explicit_gpt2(model, ids, keep)
    torch.testing.assert_close(found, expected)
    assert (found - model(ids).hidden).abs().mean() > 0.1, "nothing was dropped"
    gradients = [gradients_of(model, model.head(hidden, targets)) for hidden in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_t5_drops_inside_feed_forward_layers_and_after_its_last_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place of T5's code, each with keys of its own: per encoder layer 4, per decoder layer 6, around them 4."""
    from llmscale.model import block, feed_forward, stack
    from llmscale.model.attention.modules import core

    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def spy(x: Tensor, keys: Tensor, rate: float, *part: Any) -> Tensor:
        seen.append((tuple(x.shape), tuple(keys.flatten().tolist())))
        return drop(x, keys, rate, *part)

    for module in (core, block, feed_forward, stack):
        monkeypatch.setattr(module, "drop", spy)
    model = build(small("t5", layers=2, encoder_layers=3, dropout=RATE, attention_dropout=RATE), VOCAB, seed=1)
    ids, source = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 9, dtype=torch.int64)
    output = model(ids, encoder_inputs=source, dropout=Dropout.of(0, torch.tensor([1, 2]))).hidden
    wide, inner, scores = (2, 9, 32), (2, 9, 40), (2, 4, 9, 9)
    expected = [wide, *[scores, wide, inner, wide] * 3, wide]
    wide, inner, scores, cross = (2, 5, 32), (2, 5, 40), (2, 4, 5, 5), (2, 4, 5, 9)
    expected += [wide, *[scores, wide, cross, wide, inner, wide] * 2, wide]
    assert [shape for shape, _ in seen] == expected
    assert len({keys for _, keys in seen}) == len(expected)
    assert 0.02 < (output == 0).double().mean() < 0.3


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "gptj", "gpt_neox", "mixtral", "pangu_alpha"])
def test_samples_do_not_depend_on_their_batch(name: str) -> None:
    """What micro batches need; and the same number gives the same masks, another one others."""
    model = build(small(name, layers=2, dropout=RATE, attention_dropout=RATE, init_std=0.2), VOCAB, seed=1)
    ids = torch.randint(VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    numbers = torch.tensor([4, 77, 5, 6])

    def run(rows: list[int], numbers: Tensor = numbers, seed: int = 3) -> Tensor:
        source = {"encoder_inputs": ids[rows]} if model.encoder is not None else {}
        return model(ids[rows], **source, dropout=Dropout.of(seed, numbers[rows])).hidden

    with torch.no_grad():
        whole = run([0, 1, 2, 3])
        torch.testing.assert_close(torch.cat([run([0]), run([1, 2]), run([3])]), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run([3, 1, 0, 2])[[2, 1, 3, 0]], whole, rtol=1e-4, atol=1e-5)
        assert torch.equal(run([0, 1, 2, 3]), whole)
        for other in (run([0, 1, 2, 3], numbers + 4), run([0, 1, 2, 3], seed=4)):
            assert ((other - whole).abs().amax((1, 2)) > 1e-2).all()


def test_nothing_is_dropped_without_being_asked() -> None:
    config = small("gpt2", layers=2, dropout=0.5, attention_dropout=0.5)
    with_rates, without = build(config, VOCAB, seed=1).train(), build(small("gpt2", layers=2), VOCAB, seed=1)
    ids = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_rates(ids).hidden, without(ids).hidden)
    assert torch.equal(without(ids, dropout=Dropout.of(0, torch.arange(2))).hidden, without(ids).hidden)
    cache = KeyValueCache(config, 2, LENGTH, torch.float32, "cpu")
    with pytest.raises(ValueError, match="dropout is for training and cannot be combined with a cache"):
        with_rates(ids, cache=cache, dropout=Dropout.of(0, torch.arange(2)))


def test_native_attention_dropout_follows_torch_s_generator() -> None:
    config = small("gpt2", layers=1, attention_dropout=0.5)
    model = build(config, VOCAB, seed=1)
    ids = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    dropout = Dropout.of(0, torch.arange(2), layout_free=False)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(ids, dropout=dropout).hidden

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("t5", "modernbert")), "wu_dao"]
)
def test_compiled_blocks_drop_the_same_and_share_their_graphs(name: str) -> None:
    model = build(small(name, dropout=RATE, attention_dropout=RATE), VOCAB, seed=1)
    ids, targets = torch.randint(VOCAB, (2, 3, LENGTH), generator=torch.Generator().manual_seed(0))
    source = {"encoder_inputs": targets} if model.encoder is not None else {}

    def loss(first: int) -> Tensor:
        dropout = Dropout.of(3, torch.arange(first, first + 3))
        return model.head(model(ids, **source, dropout=dropout).hidden, targets)

    expected = loss(0)
    gradients = gradients_of(model, expected)
    counter = compile_whole(model)
    found = loss(0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients_of(model, found), gradients, rtol=1e-4, atol=1e-5)
    graphs = counter.frame_count
    assert graphs == {"gpt2": 1, "t5": 2, "modernbert": 3, "wu_dao": 2}[name]
    assert loss(100) != found
    assert counter.frame_count == graphs, "other samples compiled anew"
