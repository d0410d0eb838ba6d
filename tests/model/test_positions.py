"""Positions beside their papers' formulas and transformers' code."""

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from llmscale.config import ModelConfig
from llmscale.config.model import RotaryScaling
from llmscale.model.positions import (
    RelativeBias,
    alibi_bias,
    alibi_slopes,
    rotary_tables,
    rotate,
    sinusoidal,
)
from llmscale.parallel.init import build
from tests.model.test_compile import VOCAB, draw

KINDS: dict[str, dict[str, Any]] = {
    "learned": {"positions": "learned"},
    "sinusoidal": {"positions": "sinusoidal"},
    "rotary": {"positions": "rotary"},
    "interleaved": {"positions": "rotary", "rotary_interleaved": True, "rotary_fraction": 0.5},
    "scaled": {"positions": "rotary", "rotary_scaling": {"kind": "linear", "factor": 3.0}},
    "relative": {"positions": "relative", "relative_buckets": 8, "relative_max_distance": 7},
    "alibi": {"positions": "alibi"},
}


@pytest.mark.parametrize("heads", range(1, 34))
def test_alibi_slopes_are_bloom_s(heads: int) -> None:
    slopes = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads), slopes, rtol=1e-6, atol=0)
    if heads & (heads - 1) == 0:
        expected = [2 ** (-8 / heads * (head + 1)) for head in range(heads)]
        assert alibi_slopes(heads).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("heads", [3, 8])
def test_alibi_takes_slope_times_distance_off_each_score(heads: int) -> None:
    places = torch.arange(6)
    found = alibi_bias(places - places[:, None], heads)
    slopes = alibi_slopes(heads).tolist()
    for head in range(heads):
        for query in range(6):
            for key in range(6):
                expected = -slopes[head] * abs(query - key)
                assert found[0, head, query, key].item() == pytest.approx(expected, rel=1e-6)


def test_sinusoidal_positions() -> None:
    positions = torch.tensor([[0, 1, 2, 77], [5, 0, 300, 1]])
    found = sinusoidal(positions, 12)
    for row in range(2):
        for column in range(4):
            for pair in range(6):
                angle = positions[row, column].item() / 10000 ** (2 * pair / 12)
                expected = [math.sin(angle), math.cos(angle)]
                assert found[row, column, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20), (6, 9), (64, 1000), (32, 17)])
@pytest.mark.parametrize("causal", [True, False])
def test_relative_buckets_are_t5_s(buckets: int, farthest: int, causal: bool) -> None:
    config = ModelConfig(
        positions="relative", hidden_size=8, heads=2, relative_buckets=buckets, relative_max_distance=farthest
    )
    distance = torch.arange(-1500, 1501)
    found = RelativeBias(config, causal).bucket(distance)
    expected = T5Attention._relative_position_bucket(
        distance, bidirectional=not causal, num_buckets=buckets, max_distance=farthest
    )
    assert torch.equal(found, expected)
    assert found.unique().numel() > buckets // 2


@pytest.mark.parametrize(
    "scaling",
    [
        {"kind": "linear", "factor": 4.0},
        {"kind": "llama3", "factor": 8.0, "original_positions": 8192},
        {
            "kind": "llama3", "factor": 32.0, "low_frequency_factor": 1.5, "high_frequency_factor": 6.0,
            "original_positions": 512,
        },
    ],
)  # fmt: skip
def test_scaled_frequencies_are_transformers(scaling: dict[str, Any]) -> None:
    parameters: dict[str, Any] = {
        "rope_type": scaling["kind"],
        "rope_theta": 500000.0,
        "factor": scaling["factor"],
    }
    if scaling["kind"] == "llama3":
        parameters |= {
            "low_freq_factor": scaling.get("low_frequency_factor", 1.0),
            "high_freq_factor": scaling.get("high_frequency_factor", 4.0),
            "original_max_position_embeddings": scaling["original_positions"],
        }
    config = LlamaConfig(hidden_size=128, num_attention_heads=1, rope_parameters=parameters)
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["kind"]](config, torch.device("cpu"))
    assert factor == 1
    cos, sin = rotary_tables(torch.tensor([[1]]), 128, 500000.0, RotaryScaling(**scaling))
    torch.testing.assert_close(torch.atan2(sin, cos).flatten(), frequencies, rtol=2e-5, atol=1e-9)
    unscaled = rotary_tables(torch.tensor([[1]]), 128, 500000.0)[1]
    assert not torch.allclose(sin, unscaled, rtol=1e-2, atol=0)


@pytest.mark.parametrize("rotated", [4, 12, 16])
def test_interleaved_rotation_multiplies_complex_numbers(rotated: int) -> None:
    x = torch.randn(2, 5, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 0, 90, 3, 3]])
    turned = rotate(x, rotary_tables(positions, rotated, base=100.0), interleaved=True)
    angles = positions[..., None].double() * 100.0 ** (-torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
    factors = torch.polar(torch.ones_like(angles), angles)[:, :, None]
    numbers = torch.view_as_complex(x[..., :rotated].unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(numbers * factors).flatten(-2)
    torch.testing.assert_close(turned[..., :rotated], expected, rtol=0, atol=5e-5)
    assert torch.equal(turned[..., rotated:], x[..., rotated:])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_the_documents_alone(kind: str, architecture: str, window: int | None) -> None:
    local = {} if window is None else {"attention_pattern": ["global", "local"], "window": window}
    model = build(
        ModelConfig(
            architecture=architecture, layers=2, hidden_size=32, heads=4, max_positions=16, vocab_multiple=16,
            init_std=0.3, **KINDS[kind], **local,
        ),
        VOCAB,
        seed=1,
    )  # fmt: skip
    ids = draw(3, 1, 12)
    lengths = [5, 1, 6]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.no_grad():
        packed = model(ids, positions=positions, segment_ids=segments).hidden
        alone = torch.cat([model(part).hidden for part in ids.split(lengths, dim=1)], dim=1)
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(ids, positions=positions).hidden, packed, atol=1e-2)
