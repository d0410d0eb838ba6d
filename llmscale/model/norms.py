"""Normalisation layers."""

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


def make_norm(config: ModelConfig) -> nn.Module:
    """The config's norm over the last axis, (..., hidden_size) to the same shape.

    LayerNorm is Ba et al. 2016, equation 4; RMSNorm has no bias.
    """
    if config.norm == "rmsnorm":
        return make_rms_norm(config, config.hidden_size)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.has_bias("norm"))


def make_rms_norm(config: ModelConfig, channels: int) -> RMSNorm:
    """The config's RMSNorm over so many channels."""
    return RMSNorm(channels, eps=config.norm_eps)
