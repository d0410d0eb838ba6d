"""Positions: rotary and sinusoidal tables, and biases by distance."""

import math

import torch
from torch import Tensor, nn

from llmscale.config.model import ModelConfig, RotaryScaling

Tables = tuple[Tensor, Tensor]
"""Cosines and sines of `rotary_tables`."""


def rotary_tables(positions: Tensor, channels: int, base: float, scaling: RotaryScaling | None = None) -> Tables:
    """Cosines and sines of every position's angles (RoFormer, section 3.2.2).

    Computed where they are used rather than kept as buffers, so that casting the model to bf16 cannot round them.

    Args:
        positions: (B, T) or (1, T) integers.
        channels: rotated channels of a head, even.
        base: the frequencies are base^(-2i/channels), i = 0 .. channels/2 - 1.
        scaling: how they are stretched.

    Returns:
        Two fp32 tensors (B or 1, T, 1, channels/2), which broadcast over heads.
    """
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device) / channels
    frequencies = base**-exponents
    if scaling is not None:
        frequencies = _stretched(frequencies, scaling, base)
    angles = positions[..., None, None].float() * frequencies
    if scaling is not None and scaling.kind == "yarn" and scaling.magnitude != 1:
        return angles.cos() * scaling.magnitude, angles.sin() * scaling.magnitude
    return angles.cos(), angles.sin()


def _stretched(frequencies: Tensor, scaling: RotaryScaling, base: float) -> Tensor:
    """Frequencies for a longer context; of llama3 and yarn the fast ones stay, the slow ones are divided, and those
    between are mixed by where they lie (Llama 3's code, `apply_scaling`; YaRN, Peng et al. 2023, equation 13)."""
    divided = frequencies / scaling.factor
    if scaling.kind == "linear":
        return divided
    if scaling.kind == "yarn":
        pairs = len(frequencies)
        first = max(math.floor(_pair_of(scaling.fast_turns, pairs, base, scaling.original_positions)), 0)
        last = min(math.ceil(_pair_of(scaling.slow_turns, pairs, base, scaling.original_positions)), 2 * pairs - 1)
        places = torch.arange(pairs, dtype=torch.float32, device=frequencies.device)
        ramp = ((places - first) / (last - first if last != first else 0.001)).clamp(0, 1)
        return ramp * divided + (1 - ramp) * frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * divided


def _pair_of(turns: float, pairs: int, base: float, positions: int) -> float:
    """The number of the pair of channels that turns so often within so many positions."""
    return pairs * math.log(positions / (turns * 2 * math.pi)) / math.log(base)


def rotate(x: Tensor, tables: Tables, interleaved: bool = False) -> Tensor:
    """Rotate the first channels of each head and pass the rest through; the arithmetic is at least fp32.

    Args:
        x: (B, T, heads, channels).
        tables: of `rotary_tables`.
        interleaved: channel 2i is paired with 2i + 1, as in GPT-J; else i with i + half, as in GPT-NeoX and Llama.
    """
    cos, sin = tables
    half = cos.shape[-1]
    turned, rest = x.split([2 * half, x.shape[-1] - 2 * half], dim=-1)
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.split(half, dim=-1)
    parts = [(first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)]
    if interleaved:
        return torch.cat([torch.stack(parts, dim=-1).flatten(-2), rest], dim=-1)
    return torch.cat([*parts, rest], dim=-1)


def sinusoidal(positions: Tensor, channels: int) -> Tensor:
    """Sines and cosines in turn (Vaswani et al. 2017, section 3.5): (B, T) positions to fp32 (B, T, channels)."""
    cos, sin = rotary_tables(positions, channels, 10000.0)
    return torch.stack([sin, cos], dim=-1).flatten(-3)


class RelativeBias(nn.Module):
    """A learned bias by head and distance, in buckets (Raffel et al. 2020, section 2.1): one table for all layers."""

    def __init__(self, config: ModelConfig, causal: bool) -> None:
        super().__init__()
        self.buckets = config.relative_buckets
        self.max_distance = config.relative_max_distance
        self.causal = causal
        self.table = nn.Embedding(config.relative_buckets, config.heads)

    def forward(self, distance: Tensor) -> Tensor:
        """(T, S) key place minus query place to biases (1, heads, T, S)."""
        return self.table(self.bucket(distance)).permute(2, 0, 1)[None]

    def bucket(self, distance: Tensor) -> Tensor:
        """Bucket numbers: one for each small distance, then logarithmically wider ones up to `max_distance`.

        A decoder has them for keys before the query; an encoder half of them for either side.
        """
        buckets = self.buckets if self.causal else self.buckets // 2
        side = torch.zeros_like(distance) if self.causal else (distance > 0) * buckets
        far = distance.neg().clamp(min=0) if self.causal else distance.abs()
        exact = buckets // 2
        # The logarithm of 0 is never chosen, but must be a number.
        scale = torch.log(far.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        wide = (exact + (scale * (buckets - exact)).long()).clamp(max=buckets - 1)
        return side + torch.where(far < exact, far, wide)


def alibi_bias(distance: Tensor, heads: int, wanted: range | None = None) -> Tensor:
    """A penalty that grows with the distance, at its own slope for each head (Press et al. 2022, section 3).

    Args:
        distance: (T, S) key place minus query place.
        heads: of the whole layer.
        wanted: some heads, one after the other; None: all.

    Returns:
        fp32 (1, heads wanted, T, S).
    """
    slopes = alibi_slopes(heads, distance.device)
    if wanted is not None:
        slopes = slopes[wanted.start : wanted.stop]
    return slopes[None, :, None, None] * -distance.abs().float()


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """2^(-8/n), 2^(-16/n), ...; where n is no power of two, the missing ones are every other of the next power's."""
    power = 2 ** math.floor(math.log2(heads))

    def geometric(count: int) -> list[float]:
        return [2 ** (-8 * (index + 1) / count) for index in range(count)]

    slopes = geometric(power) + geometric(2 * power)[::2][: heads - power]
    return torch.tensor(slopes, dtype=torch.float32, device=device)
