"""Kinds of attention: one file each, with its tensors, how ranks share them, how they begin, and its heads and cache,
from which follows what it costs.

Tables only: nothing here imports torch. A kind's module is the file of the same name in `llmscale/model/attention`.
A file with a KIND is a kind, by its name; no other file knows of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from llmscale.attention.base import AttentionKind, AttentionTable
from llmscale.config.model import ModelConfig

DEFAULT = "multi_head"
"""What a model has that is of no other kind, and the attention of a decoder to its encoder."""


@cache
def _others() -> tuple[AttentionKind, ...]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", DEFAULT))
    return tuple(map(_kind, names))


@cache
def _kind(name: str) -> AttentionKind:
    return importlib.import_module(f"llmscale.attention.{name}").KIND  # type: ignore[no-any-return]


def kind_of(config: ModelConfig) -> AttentionKind:
    """The kind of a model's attention."""
    return next((kind for kind in _others() if kind.is_of(config)), _kind(DEFAULT))


def table_of(config: ModelConfig, cross: bool = False) -> AttentionTable:
    """The tensors and heads of one layer's attention; `cross`: of that to the encoder's result."""
    return _kind(DEFAULT).cross(config) if cross else kind_of(config).table(config)
