"""Templates of task files: what they may hold, what they read, and their values for many records.

They are jinja2, and see the fields of a record, the values of `let`, and `subset`. There is nothing in them by which a
file could be read, code be run, or time and memory be used without bound: what they are made of is checked when a task
is loaded, and they are rendered in a process of their own, within limits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jinja2
from jinja2 import nodes
from pydantic import AfterValidator, BeforeValidator

from data_pipeline.reading.rendering import RENDERER, RecordFault
from data_pipeline.reading.template_worker import make_task_environment

BATCH_RECORDS = 256
BATCH_CHARACTERS = 1 << 22
"""Records that are rendered at once end where they are more, or longer."""
LONGEST = 1 << 16
"""Most characters of a template."""
_FORBIDDEN = {
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from ... import",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
}
_NAMES = ("range",)
"""Functions that templates know."""
_ENVIRONMENT = make_task_environment()
"""Parses only: what templates make is made in another process."""


class Template(NamedTuple):
    """A template by the place where it stands in the file."""

    name: str
    """Such as `context` or `answers.0`; those behind `let.x` see its value as `x`."""
    source: str
    whole: bool = False
    """Its value is wanted, be it a list or a number, where it is one expression: `{{ choices.text }}`."""


def _checked(source: str) -> str:
    if len(source) > LONGEST:
        raise ValueError(f"the template has {len(source):,} characters, but {LONGEST:,} are the most; make it shorter")
    try:
        problem = _problem(_ENVIRONMENT.parse(source))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"{_short(source)} is no valid template ({error.message}, its line {error.lineno}); repair it"
        ) from None
    except RecursionError:
        raise ValueError("the template is nested too deeply; make it simpler") from None
    if problem is not None:
        raise ValueError(f"{_short(source)} {problem}")
    return source


def _problem(tree: nodes.Template) -> str | None:
    for node in tree.find_all(tuple(_FORBIDDEN)):
        return f"has {_FORBIDDEN[type(node)]!r}, which templates of tasks may not; leave it out"
    for what, kind, known in (("filter", nodes.Filter, _ENVIRONMENT.filters), ("test", nodes.Test, _ENVIRONMENT.tests)):
        for named in tree.find_all(kind):
            if named.name not in known:
                near = difflib.get_close_matches(named.name, known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]!r}?" if near else f"use one of jinja's {what}s"
                return f"has the {what} {named.name!r}, which is not known; {hint}"
    return None


Text = Annotated[str, AfterValidator(_checked)]
"""A template in a task file."""


def _checked_texts(value: Any) -> Any:
    """Not left to pydantic, which tells of each of the two forms what it is not."""
    for place, source in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(source, str):
            where = f"number {place} of the list" if isinstance(value, list) else "it"
            raise ValueError(f"{where} is {source!r}, but a text is needed; put it in quotes")
        _checked(source)
    return value


Texts = Annotated[str | list[str], BeforeValidator(_checked_texts)]
"""One template, or a list of them."""


def _short(source: str) -> str:
    return repr(source if len(source) <= 80 else source[:80] + "...")


def reads(source: str) -> set[str]:
    """The names that a template looks up: fields of the record, values of `let`.

    jinja's own function for it would evaluate what is constant, here and without bounds.
    """
    names: dict[str, set[str]] = {"load": set(), "store": {"loop"}, "param": set()}
    for name in _ENVIRONMENT.parse(source).find_all(nodes.Name):
        names[name.ctx].add(name.name)
    return names["load"] - names["store"] - set(_NAMES)


def requires(source: str) -> set[str]:
    """Those of them without which it has no value: none where it asks what is defined."""
    tree = _ENVIRONMENT.parse(source)
    asks = any(test.name in ("defined", "undefined") for test in tree.find_all(nodes.Test))
    asks = asks or any(each.name in ("default", "d") for each in tree.find_all(nodes.Filter))
    return set() if asks else reads(source)


class Unrendered(Exception):
    """A template has no value for a record."""

    def __init__(self, record: int | None, template: str | None, reason: str, undefined: bool) -> None:
        super().__init__(reason)
        self.record = record
        """Its place; None where a template goes wrong for none in particular."""
        self.template = template
        self.undefined = undefined
        """The template names what is not there."""


def render(templates: Iterable[Template], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The values of all templates, by name, for each record.

    Raises:
        Unrendered: one has no value for a record.
    """
    sources = [(template.name, template.source, template.whole) for template in templates]
    values: list[dict[str, Any]] = []
    for start, stop in _batches(records):
        try:
            values += RENDERER.values(sources, records[start:stop])
        except RecordFault as fault:
            place = None if fault.record is None else start + fault.record
            raise Unrendered(place, fault.template, str(fault), fault.undefined) from None
    return values


def _batches(records: Sequence[Mapping[str, Any]]) -> Iterable[tuple[int, int]]:
    start = size = 0
    for place, record in enumerate(records):
        size += _size(record)
        if place + 1 - start == BATCH_RECORDS or size > BATCH_CHARACTERS or place + 1 == len(records):
            yield start, place + 1
            start, size = place + 1, 0


def _size(value: Any) -> int:
    """About how many characters a value has as JSON."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
