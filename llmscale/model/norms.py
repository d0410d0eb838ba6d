"""Normalisation layers."""

from torch import nn

from llmscale.config.model import ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    """The config's norm over the last axis, (..., hidden_size) to the same shape.

    LayerNorm is Ba et al. 2016, equation 4; RMSNorm is Zhang and Sennrich 2019, equation 4, and has no bias.
    """
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.has_bias("norm"))
