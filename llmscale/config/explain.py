"""What pydantic finds wrong with a section, as one sentence with the key as the user writes it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from data_pipeline.base.section import descriptions

_SHOWN = 200
"""Most characters of a value in a message."""


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem of what `root` was to be made of, as one sentence; unknown keys come first, since they often
    cause the others."""
    return first_problem(error, root)[1]


def first_problem(error: ValidationError, root: type[BaseModel]) -> tuple[list[str], str]:
    """Where the first problem is, by keys and indices, and the sentence about it."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    path, section = _resolve([str(part) for part in problem["loc"]], root)
    return path, _sentence(problem, path, section, root) + more


def _sentence(problem: Any, path: list[str], section: type[BaseModel] | None, root: type[BaseModel]) -> str:
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{_nearest(path, section, root)}"
    if problem["type"] == "missing":
        return f"'{dotted}' is missing; add it"
    if problem["type"].startswith("union_tag"):
        return _explain_tag(dotted, problem)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{dotted + ': ' if dotted else ''}{message}"
    return f"'{dotted}' is {cut(repr(problem['input']))}, {_explain_value(dotted, problem)}"


def _explain_value(dotted: str, problem: Any) -> str:
    """What is wrong with a value, and what to write."""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        return f"which is not known; {_hint(problem['input'], problem['ctx']['expected'])}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"but it must be a mapping of settings; write {dotted}.NAME=VALUE, or lines below {dotted}:"
    message = problem["msg"].replace("Input should", "it must", 1)
    return f"but {message[0].lower()}{message[1:]}"


def _hint(value: str, known: str) -> str:
    """What to write instead of a value; `known` lists the right ones as pydantic does, in quotes."""
    names = re.findall("'([^']*)'", known)
    near = difflib.get_close_matches(value.lower(), names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(map(repr, names))}"


def cut(text: str) -> str:
    """A value as messages show it: a page of it helps nobody."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _explain_tag(dotted: str, problem: Any) -> str:
    """A section that comes in several kinds has none, or an unknown one."""
    key = problem["ctx"]["discriminator"].strip("'")
    if problem["type"] == "union_tag_not_found":
        return f"'{dotted}.{key}' is missing; it says which kind of {dotted} is meant"
    tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
    return f"'{dotted}.{key}' is '{tag}', which is not known; {_hint(tag, known)}"


def _resolve(loc: list[str], root: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """The path of a problem as the user writes it, and the section that its last key belongs to.

    Where a section comes in several kinds, pydantic puts the kind into the path.
    """
    path: list[str] = []
    section: type[BaseModel] | None = root
    kinds: list[type[BaseModel]] = []
    for place, part in enumerate(loc):
        tagged = {tag: kind for kind in kinds for tag in _tags(kind)}
        if len(kinds) > 1 and part in tagged:
            section, kinds = tagged[part], []
            continue
        path.append(part)
        if place + 1 == len(loc) or part.isdigit() or section is None:
            continue
        field = section.model_fields.get(part)
        kinds = list(_sections(field.annotation)) if field else []
        section = kinds[0] if len(kinds) == 1 else None if not kinds else section
    return path, section


def _tags(kind: type[BaseModel]) -> list[str]:
    """The values of a section's fields that can have one value only."""
    literals = (get_args(field.annotation) for field in kind.model_fields.values() if _is_literal(field.annotation))
    return [values[0] for values in literals if len(values) == 1]


def _is_literal(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation such as `list[A | B] | None` can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _nearest(path: list[str], section: type[BaseModel] | None, root: type[BaseModel]) -> str:
    siblings = list(section.model_fields) if section else []
    near = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{'.'.join([*path[:-1], near[0]])}'?"
    elsewhere = [key for key, _ in keys_of(root) if key.rpartition(".")[2] == path[-1]]
    if ".".join(path) in elsewhere:
        kinds = ", ".join(_kinds_with(path, root))
        return f", which {'.'.join(path[:-1])} has for {kinds} only; leave it out"
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return f"; '{'.'.join(path[:-1]) or 'the top level'}' knows {', '.join(sorted(siblings))}"


def _kinds_with(path: list[str], root: type[BaseModel]) -> list[str]:
    """The kinds of a section, such as `objective.name=causal`, that have the key at `path`."""
    kinds: list[type[BaseModel]] = [root]
    for part in path[:-1]:
        if not part.isdigit():
            annotations = (kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields)
            kinds = [section for annotation in annotations for section in _sections(annotation)]
    return [tag for kind in kinds if path[-1] in kind.model_fields for tag in _tags(kind)]


def keys_of(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    """Every (dotted key, description), sections before their fields; list sections appear without an index; what
    several kinds of a section have comes once."""
    found: dict[str, str] = {}
    texts = descriptions(model)
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        found[key] = texts[name]
        for section in _sections(field.annotation):
            for below, description in keys_of(section, key + "."):
                found.setdefault(below, description)
    return list(found.items())
