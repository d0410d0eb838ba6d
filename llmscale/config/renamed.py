"""Keys of earlier releases, which are still read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.base.section import Section
from llmscale.config.root import RunConfig


def _renamed() -> Iterator[tuple[str, str]]:
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from ((f"{name}.{old}", f"{name}.{new}") for old, new in field.annotation.renamed.items())


RENAMED = dict(_renamed())
"""Today's dotted key by the one of earlier releases."""


def by_new_names(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A nested mapping with today's keys, and the old ones that it had.

    Raises:
        UserError: it has a setting by both names.
    """
    sections, used = dict(raw), []
    for old, new in RENAMED.items():
        name, _, key = old.partition(".")
        section, today = sections.get(name), new.partition(".")[2]
        if not isinstance(section, dict) or key not in section:
            continue
        if today in section:
            raise UserError(f"{old} is now called {new}, but both are given; leave out {old}")
        sections[name] = {today if each == key else each: value for each, value in section.items()}
        used.append(old)
    return sections, used
