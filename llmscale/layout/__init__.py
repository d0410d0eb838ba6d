"""Which layouts are legal for a config: one pure, torch-free answer with both values and the nearest legal choice.

`settings` checks what has nothing to do with the layout, `rules` holds the rules of layouts and the table of what is
not proven yet, `nearest` finds legal layouts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.layout.facts import LayoutFacts, facts_of
from llmscale.layout.layout import SETTINGS, Layout, data_parallel_size, given_ranks, layout_of, with_layout
from llmscale.layout.nearest import all_layouts, nearest_layouts
from llmscale.layout.rules import Violation, first_broken
from llmscale.layout.settings import require_possible

__all__ = [
    "IllegalLayout",
    "Layout",
    "data_parallel_size",
    "given_ranks",
    "layout_of",
    "legal_layouts",
    "problem",
    "require_legal",
    "require_possible",
    "with_layout",
]

_SHOWN = 3
"""Alternatives that a sentence names."""

FREE = (
    "pipeline",
    "data",
    "context",
    "tensor",
    "sequence_parallel",
    "expert",
    "zero_stage",
    "activation_checkpointing",
)
"""What `legal_layouts` varies unless told otherwise."""


@dataclass(frozen=True)
class IllegalLayout:
    """Why a layout is illegal, and the legal ones nearest to it, which are searched for when first asked for."""

    broken: Violation
    facts: LayoutFacts
    layout: Layout

    @cached_property
    def nearest(self) -> tuple[dict[str, Any], ...]:
        """The smallest changes that make the layout legal, each as values by setting; `ranks` is the number of ranks.

        All have as few settings as possible; the nearest comes first (see `nearest.nearest_layouts`).
        """
        return tuple(
            {
                SETTINGS[field]: new
                for field, old, new in zip(Layout._fields, self.layout, near, strict=True)
                if new != old
            }
            for near in nearest_layouts(self.facts, self.layout)
        )

    @property
    def changes(self) -> dict[str, Any]:
        """The nearest legal choice."""
        return self.nearest[0]

    @cached_property
    def sentence(self) -> str:
        """What is wrong, with both values, and what to use instead."""
        fixes = [_fix(list(changes), values) for changes, values in self._grouped()[:_SHOWN]]
        if self.broken.otherwise:
            fixes.append(f"set {self.broken.otherwise}")
        return f"{self.broken.reason}; use {', or '.join(fixes)}"

    def _grouped(self) -> list[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
        """The nearest choices by the settings that they change."""
        grouped: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for changes in self.nearest:
            grouped.setdefault(tuple(changes), []).append(tuple(changes.values()))
        return list(grouped.items())


def require_legal(config: RunConfig, world_size: int) -> None:
    """Refuse what cannot run on `world_size` ranks, before anything is started.

    Raises:
        UserError: names the fields, both values and the nearest legal ones.
    """
    require_possible(config)
    found = problem(config, world_size)
    if found:
        raise UserError(found.sentence)


def problem(config: RunConfig, world_size: int) -> IllegalLayout | None:
    """What is wrong with the layout of a config on `world_size` ranks; None when it is legal."""
    facts, layout = facts_of(config), layout_of(config, world_size)
    broken = first_broken(facts, layout)
    return IllegalLayout(broken, facts, layout) if broken else None


def legal_layouts(config: RunConfig, world_size: int, free: Collection[str] = FREE) -> Iterator[Layout]:
    """Every legal layout of a config on `world_size` ranks.

    Args:
        config: what is trained; of its layout only what is not in `free` counts.
        world_size: number of ranks.
        free: fields of `Layout` to vary; `data` follows from the others.
    """
    yield from all_layouts(facts_of(config), layout_of(config, world_size), free)


def _fix(settings: list[str], values: list[tuple[Any, ...]]) -> str:
    """Such as `parallel.tensor=6 or 4`, `8 ranks`, `parallel.tensor=4 and 8 ranks`."""
    parts = []
    for place, setting in enumerate(settings):
        choices = [str(row[place]).lower() for row in values]
        if setting == "ranks":
            parts.append(f"{' or '.join(choices)} rank{'' if choices == ['1'] else 's'}")
        else:
            parts.append(f"{setting}={' or '.join(choices)}")
    # The number of ranks stands first among the fields of a layout, but reads better at the end.
    *first, last = sorted(parts, key=lambda part: "=" not in part)
    return f"{', '.join(first)} and {last}" if first else last
