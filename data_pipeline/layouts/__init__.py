"""Common forms of records, each in a file of its own, found by listing this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection
from functools import cache

from data_pipeline.layouts.layout import TARGET, TEXT, AutoLayout, Layout

__all__ = ["AUTO", "TARGET", "TEXT", "Layout", "known_layouts", "layout_of"]
AUTO = "auto"
_TOOLS = ("layout",)


@cache
def known_layouts() -> dict[str, Layout]:
    """All layouts by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _TOOLS)
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    found = [
        value()
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Layout) and value.__module__ == module.__name__
    ]
    dialogues = [layout for layout in found if layout.gives - {TARGET} == {"messages"}]
    return {**{layout.name: layout for layout in found}, AUTO: AutoLayout(dialogues)}


def layout_of(name: str) -> Layout:
    """The layout of a name.

    Raises:
        ValueError: there is none; says which there are.
    """
    if name not in known_layouts():
        raise ValueError(f"layout is {name!r}, but the layouts are {_listed(known_layouts())}; name one of them")
    return known_layouts()[name]


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
