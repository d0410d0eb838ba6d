"""The modules of the kinds of attention, one file each; what else is special to a kind is in `llmscale/attention`."""

import importlib

from llmscale.attention import kind_of
from llmscale.config.model import ModelConfig
from llmscale.model.attention.core import Core, SelfAttention
from llmscale.model.attention.multi_head import Attention, CrossAttention

__all__ = ["Attention", "Core", "CrossAttention", "SelfAttention", "make_attention"]


def make_attention(config: ModelConfig, layer: int, causal: bool) -> SelfAttention:
    """The self-attention of a layer, of the kind that the model has."""
    module = importlib.import_module(f"llmscale.model.attention.{kind_of(config).name}")
    return module.Attention(config, layer, causal)  # type: ignore[no-any-return]
