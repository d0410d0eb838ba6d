"""Keys and values of earlier releases, which are still read."""

from __future__ import annotations

from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.base.section import Section
from llmscale.config.root import RunConfig

_SECTIONS = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
_KEYS = {
    f"{name}.{old}": f"{name}.{new}" for name, section in _SECTIONS.items() for old, new in section.renamed.items()
}
_VALUES = {
    f"{name}.{key}={old}": f"{name}.{key}={new}"
    for name, section in _SECTIONS.items()
    for key, values in section.renamed_values.items()
    for old, new in values.items()
}
RENAMED = _KEYS | _VALUES
"""Today's dotted key, or `key=value`, by the one of earlier releases."""


def by_new_names(raw: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A nested mapping with today's keys and values, and the old ones that it had.

    Raises:
        UserError: it has a setting by both names.
    """
    sections, used = dict(raw), []
    for old, new in RENAMED.items():
        (name, key, value), (_, today, value_today) = _parts(old), _parts(new)
        section = sections.get(name)
        if not isinstance(section, dict) or key not in section or (value and section[key] != value):
            continue
        if value:
            sections[name] = section | {key: value_today}
        elif today in section:
            raise UserError(f"{old} is now called {new}, but both are given; leave out {old}")
        else:
            sections[name] = {today if each == key else each: setting for each, setting in section.items()}
        used.append(old)
    return sections, used


def _parts(setting: str) -> tuple[str, str, str]:
    """Section, key and value of `section.key` or `section.key=value`."""
    dotted, _, value = setting.partition("=")
    name, _, key = dotted.partition(".")
    return name, key, value
