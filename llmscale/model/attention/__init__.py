"""Kinds of attention: one file each, with its tensors, how ranks share them, how they begin, and its heads and cache,
from which follows what it costs.

Tables only: nothing here imports torch before a model is built. A kind's module is the file of the same name in
`modules`. A file with a KIND is a kind, by its name; no other file knows of it.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from data_pipeline.base.modules import modules_of
from llmscale.config.model import ModelConfig
from llmscale.model.attention.multi_head import KIND as DEFAULT
from llmscale.model.attention.multi_head import cross_table
from llmscale.model.attention.table import AttentionKind, AttentionTable

if TYPE_CHECKING:
    from torch import nn

_OTHER_FILES = ("table", "modules", DEFAULT.name)


@cache
def _others() -> tuple[AttentionKind, ...]:
    return tuple(module.KIND for module in modules_of(__name__, besides=_OTHER_FILES))


def kind_of(config: ModelConfig) -> AttentionKind:
    """The kind of a model's attention."""
    return next((kind for kind in _others() if kind.is_of(config)), DEFAULT)


def table_of(config: ModelConfig, cross: bool = False) -> AttentionTable:
    """The tensors and heads of one layer's attention; `cross`: of that to the encoder's result."""
    return cross_table(config) if cross else kind_of(config).table(config)


def make_attention(config: ModelConfig, layer: int, causal: bool) -> nn.Module:
    """The self-attention of a layer, of the kind that the model has."""
    module = importlib.import_module(f"{__name__}.modules.{kind_of(config).name}")
    return module.Attention(config, layer, causal)  # type: ignore[no-any-return]
