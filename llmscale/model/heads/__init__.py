"""The heads: one file each, found by listing this folder. Nothing here imports torch before a model is built."""

from __future__ import annotations

from functools import cache

from data_pipeline.base.errors import UserError
from data_pipeline.base.modules import classes_of
from llmscale.config.model import ModelConfig
from llmscale.model.heads.head import Head

__all__ = ["Head", "all_heads", "heads_of"]


@cache
def all_heads() -> tuple[type[Head], ...]:
    """Every kind of head, in the order of the files' names."""
    return classes_of(__name__, Head, besides=("head",))


def heads_of(config: ModelConfig) -> tuple[Head, ...]:
    """The heads of a model: that of its loss first.

    Raises:
        UserError: the config names a head that there is none of.
    """
    known = {head.name: head for head in all_heads()}
    for name in config.predicts:
        if name not in known:
            raise UserError(f"model.head.name is {name}, but there are {', '.join(known)}; name one of them")
    return tuple(known[name](config) for name in config.predicts)
