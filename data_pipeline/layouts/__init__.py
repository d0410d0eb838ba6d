"""Common forms of records, each in a file of its own, found by listing this folder."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache

from data_pipeline.base.modules import classes_of
from data_pipeline.layouts.layout import TARGET, TEXT, AutoLayout, Layout

__all__ = ["AUTO", "TARGET", "TEXT", "Layout", "known_layouts", "layout_of"]
AUTO = "auto"


@cache
def known_layouts() -> dict[str, Layout]:
    """All layouts by name."""
    found = [layout() for layout in classes_of(__name__, Layout, besides=("layout",))]
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
