"""Rotary position embedding (RoFormer, section 3.2.2)."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, channels: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles.

    Computed where they are used rather than kept as buffers, so that casting the model to bf16 cannot round them.

    Args:
        positions: (B, T) or (1, T) integers.
        channels: rotated channels of a head, even.
        base: the frequencies are base^(-2i/channels), i = 0 .. channels/2 - 1.

    Returns:
        Two fp32 tensors (B or 1, T, 1, channels/2), which broadcast over heads.
    """
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device) / channels
    angles = positions[..., None, None].float() * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first channels of each head and pass the rest through.

    Channel i is paired with channel i + half, as GPT-NeoX and Llama do; the arithmetic is at least fp32.

    Args:
        x: (B, T, heads, channels).
        tables: of `rotary_tables`.
    """
    cos, sin = tables
    half = cos.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    turned = [(first * cos - second * sin).to(x.dtype), (second * cos + first * sin).to(x.dtype)]
    return torch.cat([*turned, rest], dim=-1)
