"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config.model import ModelConfig


class RMSNorm(nn.RMSNorm):
    """Zhang and Sennrich 2019, equation 4."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to the same shape."""
        return self.normed(x, self.weight)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """`forward` with another weight (channels,) than its own."""
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class RMSNormPlusOne(RMSNorm):
    """An RMSNorm whose factor is 1 + weight, in fp32 so that the sum of a bf16 weight is not rounded (Gemma)."""

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """`forward` with another weight (channels,) than its own."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), self.normalized_shape, 1 + weight.to(wide), self.eps).to(x.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    """The config's norm over the last axis, (..., hidden_size) to the same shape.

    LayerNorm is Ba et al. 2016, equation 4; RMSNorm has no bias.
    """
    if config.norm == "rmsnorm":
        return make_rms_norm(config, config.hidden_size)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.has_bias("norm"))


def make_rms_norm(config: ModelConfig, channels: int) -> RMSNorm:
    """The config's RMSNorm over so many channels."""
    return (RMSNormPlusOne if config.norm_plus_one else RMSNorm)(channels, eps=config.norm_eps)
