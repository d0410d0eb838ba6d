"""YAML file and dotted overrides to a frozen RunConfig."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from data_pipeline.base.durable import read_text
from data_pipeline.base.errors import UserError, first_line
from llmscale.config.root import RunConfig
from llmscale.config.yaml_files import BoundedLoader, load_yaml

_SHOWN = 200
"""Most characters of a value in a message."""


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML config; `overrides` are `dotted.key=value` strings that win over the file.

    Raises:
        UserError: a missing file, broken YAML, an unknown key (with the nearest known one) or a wrong value.
    """
    return parse_config(_read_yaml(Path(path)), overrides, origin=str(path))


def parse_config(raw: dict[str, Any], overrides: list[str] | tuple[str, ...] = (), origin: str = "config") -> RunConfig:
    """Validate a nested mapping as `load_config` does; `origin` names it in messages."""
    for override in overrides:
        _apply(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; loading it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = load_yaml(read_text(path))
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; this folder has {', '.join(near[:5])}" if near else ""
        raise UserError(f"no config file {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read config file {path}: {reason}; give a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path} is not valid YAML{where}: {problem}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold sections such as 'model:' and 'data:', but holds {type(raw).__name__}")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form dotted.key=value, such as train.steps=100")
    try:
        value = load_yaml(text, _OverrideLoader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(
            f"override '{_cut(override)}': '{_cut(text)}' is not a valid YAML value ({reason}); quote it"
        ) from None
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"override '{override}': '{'.'.join(parents)}' is a value, not a section")


class _OverrideLoader(BoundedLoader):
    """YAML in which a line break within a text stays one, where YAML would fold it to a space: in an override it was
    typed for its own sake."""

    def scan_flow_scalar_spaces(self, double: bool, start_mark: Any) -> list[str]:
        """Blanks and line breaks between the words of a quoted text, as they stand there."""
        chunks = [""]
        while self.peek() in " \t\r\n\x85\u2028\u2029":
            chunks.append(self.peek())
            self.forward()
        if self.peek() == "\0":
            return super().scan_flow_scalar_spaces(double, start_mark)  # which says that the quote is not closed
        return chunks

    def get_single_node(self) -> Any:
        """The whole override, where it is a text without quotes: the text as it stands."""
        node = super().get_single_node()
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == "tag:yaml.org,2002:str":
            text = node.start_mark.buffer.removesuffix("\0") if node.start_mark.buffer is not None else ""
            if "\n" in text and not re.search(r"(^|\s)#", text):
                node.value = text
        return node


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise UserError(f"override '{override}': '{part}' lies below a value, not a section")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override '{override}': '{part}' is not an index below {len(node)}")
    return int(part)


def _explain(error: ValidationError) -> str:
    """The first problem as one sentence; unknown keys come first, since they often cause the others."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    path, section = _resolve([str(part) for part in problem["loc"]])
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{_nearest(path, section)}{more}"
    if problem["type"] == "missing":
        return f"'{dotted}' is missing; add it{more}"
    if problem["type"].startswith("union_tag"):
        return _explain_tag(dotted, problem) + more
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{dotted + ': ' if dotted else ''}{message}{more}"
    return f"'{dotted}' is {_cut(repr(problem['input']))}, but {message[0].lower()}{message[1:]}{more}"


def _cut(text: str) -> str:
    """A value as messages show it: a page of it helps nobody."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _explain_tag(dotted: str, problem: Any) -> str:
    """A section that comes in several kinds has none, or an unknown one."""
    key = problem["ctx"]["discriminator"].strip("'")
    if problem["type"] == "union_tag_not_found":
        return f"'{dotted}.{key}' is missing; it says which kind of {dotted} is meant"
    tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
    near = difflib.get_close_matches(tag, known.replace("'", "").split(", "), n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'?" if near else f"use one of {known}"
    return f"'{dotted}.{key}' is '{tag}', which is not known; {hint}"


def _resolve(loc: list[str]) -> tuple[list[str], type[BaseModel] | None]:
    """The path of a problem as the user writes it, and the section that its last key belongs to.

    Where a section comes in several kinds, pydantic puts the kind into the path.
    """
    path: list[str] = []
    section: type[BaseModel] | None = RunConfig
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


def _nearest(path: list[str], section: type[BaseModel] | None) -> str:
    siblings = list(section.model_fields) if section else []
    near = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{'.'.join([*path[:-1], near[0]])}'?"
    elsewhere = [key for key, _ in known_keys() if key.rpartition(".")[2] == path[-1]]
    if ".".join(path) in elsewhere:
        kinds = ", ".join(_kinds_with(path))
        return f", which {'.'.join(path[:-1])} has for {kinds} only; leave it out"
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return f"; '{'.'.join(path[:-1]) or 'the top level'}' knows {', '.join(sorted(siblings))}"


def _kinds_with(path: list[str]) -> list[str]:
    """The kinds of a section, such as `objective.name=causal`, that have the key at `path`."""
    kinds: list[type[BaseModel]] = [RunConfig]
    for part in path[:-1]:
        if not part.isdigit():
            annotations = (kind.model_fields[part].annotation for kind in kinds if part in kind.model_fields)
            kinds = [section for annotation in annotations for section in _sections(annotation)]
    return [tag for kind in kinds if path[-1] in kind.model_fields for tag in _tags(kind)]


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, str]]:
    """Every (dotted key, description), sections before their fields; list sections appear without an index; what
    several kinds of a section have comes once."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        found[key] = field.description or ""
        for section in _sections(field.annotation):
            for below, description in known_keys(section, key + "."):
                found.setdefault(below, description)
    return list(found.items())
