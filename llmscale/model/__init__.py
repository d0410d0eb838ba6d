"""The Transformer as plain modules: no parallelism, no communication, no environment variables.

What is named here is imported when it is first used: what heads say of themselves is asked for without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmscale.model.cache import KeyValueCache
    from llmscale.model.dropout import Dropout, Part
    from llmscale.model.transformer import Output, Transformer, skeleton

__all__ = ["Dropout", "KeyValueCache", "Output", "Part", "Transformer", "skeleton"]
_HOMES = {"KeyValueCache": "cache", "Dropout": "dropout", "Part": "dropout"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'transformer')}"), name)
