"""Parts of the model beside their formulas, and what the layers must not do."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from llmscale.config import ModelConfig
from llmscale.model import Transformer
from llmscale.model.attention.modules.multi_head import Attention
from llmscale.model.context import Context
from llmscale.model.positions import rotary_tables, rotate
from llmscale.parallel.init import build
from tests.model.references import CONFIGS, GPT2, LLAMA, VOCAB, tokens


@pytest.mark.parametrize("rotated", [4, 10, 16])
def test_rotary_is_a_complex_rotation(rotated: int) -> None:
    x = torch.randn(2, 5, 3, 16, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 900, 3, 3]])
    turned = rotate(x, rotary_tables(positions, rotated, base=100.0))
    half = rotated // 2
    frequencies = 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions[..., None].double() * frequencies
    pairs = (
        torch.complex(x[..., :half], x[..., half:rotated]) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    )
    expected = torch.cat([pairs.real, pairs.imag, x[..., rotated:]], dim=-1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=2e-4)
    assert torch.equal(turned[..., rotated:], x[..., rotated:])


def test_rotary_keeps_narrow_types_and_rounds_once() -> None:
    x = torch.randn(1, 6, 2, 8)
    tables = rotary_tables(torch.arange(6)[None] + 500, 8, base=10000.0)
    exact, narrow = rotate(x.bfloat16().float(), tables), rotate(x.bfloat16(), tables)
    assert torch.equal(narrow, exact.bfloat16())


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_sees_distances_only(fraction: float) -> None:
    model = build(LLAMA.model_copy(update={"rotary_fraction": fraction}), VOCAB, seed=1)
    ids = tokens(length=9)
    positions = torch.arange(9)[None].expand(3, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).hidden, model(ids, positions=positions + 11).hidden, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(ids).hidden, model(ids, positions=positions * 2).hidden, atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_equal_the_documents_alone(name: str) -> None:
    model = build(CONFIGS[name].model_copy(update={"init_std": 0.2}), VOCAB, seed=1)
    ids = tokens(batch=2, length=12)
    segments = torch.tensor([[0] * 5 + [1] * 7, [0] * 12])
    positions = torch.tensor([[*range(5), *range(7)], [*range(12)]])
    with torch.no_grad():
        packed = model(ids, positions=positions, segment_ids=segments).hidden
        alone = torch.cat([model(ids[:1, :5]).hidden, model(ids[:1, 5:]).hidden], dim=1)
        torch.testing.assert_close(packed[:1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(packed[1:], model(ids[1:]).hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_later_tokens_do_not_matter(name: str) -> None:
    model = build(CONFIGS[name].model_copy(update={"init_std": 0.2}), VOCAB, seed=1)
    first, second = tokens(length=10), tokens(length=10)
    second[:, 6:] = (second[:, 6:] + 1) % VOCAB
    with torch.no_grad():
        a, b = model(first).hidden, model(second).hidden
    torch.testing.assert_close(a[:, :6], b[:, :6], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(a[:, 6:], b[:, 6:])


def test_grouped_queries_share_keys_and_values() -> None:
    config = LLAMA.model_copy(update={"heads": 6, "kv_heads": 2, "head_size": 4})
    attention = Attention(config, layer=0, causal=True).double()
    x = torch.randn(2, 7, 40, dtype=torch.float64)

    def heads(projection: torch.nn.Linear) -> torch.Tensor:
        return projection(x).unflatten(-1, (-1, 4)).transpose(1, 2)

    queries, keys, values = heads(attention.query), heads(attention.key), heads(attention.value)
    mixed = []
    for head in range(6):
        scores = queries[:, head] @ keys[:, head // 3].transpose(1, 2) / 2
        scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
        mixed.append(scores.softmax(-1) @ values[:, head // 3])
    context = Context(rotary={"global": None}, masks={"global": None})
    torch.testing.assert_close(attention(x, context), attention.output(torch.cat(mixed, dim=-1)))


@pytest.mark.parametrize(
    ("activation", "function"), [("gelu", F.gelu), ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh"))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_and_biases(activation: str, function: object, bias: bool) -> None:
    model = Transformer(GPT2.model_copy(update={"activation": activation, "bias": bias}), VOCAB)
    layer = model.blocks[0].feed_forward
    x = torch.randn(3, 40)
    expected = F.linear(function(F.linear(x, layer.up.weight, layer.up.bias)), layer.down.weight, layer.down.bias)
    torch.testing.assert_close(layer(x), expected)
    assert bias == any(name.endswith("bias") for name, _ in model.named_parameters())


def test_refuses_more_tokens_than_positions() -> None:
    with pytest.raises(ValueError, match=r"25 tokens exceed model.max_positions \(24\)"):
        build(GPT2, VOCAB, seed=0)(tokens(length=25))


def test_the_head_stays_tied_through_conversions() -> None:
    model = build(GPT2, VOCAB, seed=0)
    for converted in (model, model.double(), model.to_empty(device="cpu"), model.bfloat16()):
        assert converted.head.weight is converted.embedding.weight
        assert "head.weight" not in dict(converted.named_parameters())


def test_the_model_knows_nothing_of_its_surroundings() -> None:
    program = """
import os, sys, torch, llmscale.config
before = set(sys.modules)
def refuse(*_): raise AssertionError("the model reads an environment variable")
type(os.environ).__getitem__ = type(os.environ).get = refuse
import llmscale.model
from llmscale.config.model import ModelConfig
model = llmscale.model.Transformer(ModelConfig(layers=1, hidden_size=8, heads=2), 50)
tokens = torch.zeros(1, 4, dtype=torch.long)
model.head(model(tokens).hidden, tokens).backward()
new = {name for name in set(sys.modules) - before if name.startswith(("deepspeed", "torch.distributed", "accelerate"))}
assert not new, new
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_head_size_may_differ_from_the_hidden_size() -> None:
    config = ModelConfig(layers=1, hidden_size=24, heads=2, head_size=20, max_positions=8)
    assert build(config, 30, seed=0)(tokens(length=8) % 30).hidden.shape == (3, 8, 24)
