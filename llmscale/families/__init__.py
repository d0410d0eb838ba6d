"""The published model families: one file each, with the parts it is made of and its tensors in Hugging Face's layout.

Tables only: nothing here imports torch, and the config imports this. A file with a PRESET is a family, by its name; no
other file knows of it.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from data_pipeline.base.modules import module_names

_TOOLS = ("hugging_face", "rope")
"""Modules that families are written with."""
NAMES = module_names(__name__, besides=_TOOLS)
if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[NAMES]


def family(name: str) -> ModuleType:
    """The file of a family."""
    return importlib.import_module(f"llmscale.families.{name}")


@cache
def with_class() -> tuple[str, ...]:
    """Families that transformers has a class for, each with its table HUGGING_FACE; Megatron-Turing NLG is GPT-2's."""
    return tuple(name for name in NAMES if hasattr(family(name), "HUGGING_FACE"))


def preset(name: str) -> dict[str, Any]:
    """The model settings of a family that differ from the defaults, without sizes; nothing for an unknown name."""
    return dict(family(name).PRESET) if name in NAMES else {}
