"""What the files are that `llmscale eval` is given: their kind by their name, their fields by the run's own sources."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.kinds import NAMES, kinds_by_ending, source_kind
from data_pipeline.sources.fields import TextField
from llmscale.config import RunConfig

KINDS = tuple(name for name in NAMES if not source_kind(name).is_streamed)
"""Kinds that files can have."""


class Given(NamedTuple):
    """What the command line says about the files."""

    kind: str | None = None
    field: str | None = None
    target_field: str | None = None
    encoding: str | None = None


def evaluation_sources(config: RunConfig, files: tuple[str, ...], given: Given) -> list[SourceConfig]:
    """A source for each file or pattern.

    Args:
        config: of the run; its sources say which fields hold texts, and in which encoding, where the command line
            does not.
        files: paths or patterns.

    Raises:
        UserError: files without pairs for a model that reads pairs, fields that the run does not name, or options that
            do not fit.
    """
    stored = config.objective.stored
    pairs = stored.target
    if given.target_field is not None and not (pairs or stored.fields):
        raise UserError(
            f"--target-field is {given.target_field!r}, but this model's objective is {config.objective.name}, which"
            f" reads no pairs; leave it out, or evaluate a model of objective seq2seq"
        )
    return [_source(config, pattern, given, pairs) for pattern in files]


def _source(config: RunConfig, pattern: str, given: Given, pairs: bool) -> SourceConfig:
    objective = config.objective
    values = bool(objective.stored.fields)
    kind = given.kind or _kind(config, pattern, pairs or values or given.field is not None)
    common = {"kind": kind, "paths": [pattern], "encoding": _encoding(config, kind, pattern, given)}
    if not source_kind(kind).has_fields:
        named = [
            f"--{name.replace('_', '-')}" for name in ("field", "target_field") if getattr(given, name) is not None
        ]
        if named:
            raise UserError(
                f"--data {pattern} has kind {kind}, which has no fields; leave out {named[0]}, or set --kind"
            )
        if (pairs and source_kind(kind).is_plain) or values:
            wanted = "pairs" if pairs else f"texts with their {' and '.join(objective.stored.fields)}"
            raise UserError(
                f"--data {pattern} is {kind} without fields, but a model of objective {objective.name} is evaluated on"
                f" {wanted}; give JSON lines, CSV, TSV, Parquet or Arrow (or set --kind to what it is)"
            )
        return _made(common)
    return _made({**_fields(config, kind, pattern, given, pairs), **common})


def _kind(config: RunConfig, pattern: str, fields: bool) -> str:
    """By the name's ending. CSV and TSV are plain text, too, unless fields are asked for or the run has such files."""
    name = pattern.lower().removesuffix(".gz").removesuffix(".zst")
    kind = next((kind for ending, kind in kinds_by_ending().items() if name.endswith(ending)), "text")
    if source_kind(kind).delimiter is not None and not fields and all(source.kind != kind for source in _own(config)):
        return "text"
    return kind


def _encoding(config: RunConfig, kind: str, pattern: str, given: Given) -> str | None:
    """The encoding that is given, else that of the run's sources of the kind; None where they differ."""
    if given.encoding is not None:
        if not source_kind(kind).is_text:
            raise UserError(
                f"--data {pattern} has kind {kind}, which has no encoding of its own; leave out --encoding, or set"
                f" --kind"
            )
        return given.encoding
    own = {source.encoding for source in _own(config) if source.kind == kind}
    return own.pop() if len(own) == 1 else None


def _own(config: RunConfig) -> list[SourceConfig]:
    return [*config.data.sources, *config.data.evaluation]


def _fields(config: RunConfig, kind: str, pattern: str, given: Given, pairs: bool) -> dict[str, Any]:
    """The settings that say how records are read and which fields hold texts."""
    values = bool(config.objective.stored.fields)
    needed = ("field", "target_field") if pairs or values else ("field",)
    asked = {name: getattr(given, name) for name in needed if getattr(given, name) is not None}
    own = [source for source in _own(config) if source.about.has_fields]
    if pairs:
        own = [source for source in own if "target" in source.gives]
    if values:
        own = [source for source in own if source.gives - {"target"}]
    same = [source for source in own if source.kind == kind]
    laid_out = next((source for source in same or own if source.layout is not None), None)
    if laid_out is not None and not asked:
        return {
            name: value
            for name, value in _reading(laid_out, same=laid_out.kind == kind).items()
            if name not in ("field", "target_field")
        }
    same, own = ([source for source in sources if source.layout is None] for sources in (same, own))
    known = [_reading(source, same=source.kind == kind) for source in same or (own if pairs or values else [])]
    if not known and pairs and "target_field" not in asked:
        raise UserError(
            f"--data {pattern}: the model's objective is {config.objective.name}, but no source of its run names fields"
            f" for pairs; give --field and --target-field"
        )
    ways = sorted({" and ".join(repr({**reading, **asked}[name]) for name in needed) for reading in known})
    if len(ways) > 1:
        if pairs:
            raise UserError(
                f"--data {pattern}: the sources of the run have their pairs in the fields {', or '.join(ways)}; give"
                f" --field and --target-field"
            )
        # None of them is meant more than another: the field is `text`, as of a run without such sources.
        known = []
    settings: dict[str, Any] = {**(known[0] if known else {}), **asked}
    if not (pairs or values):
        settings.pop("target_field", None)
    if not values:
        settings.pop("fields", None)
    named = {name for option in needed for name in _names(settings.get(option) or "text")}
    settings["defaults"] = {name: text for name, text in settings.get("defaults", {}).items() if name in named}
    return settings


def _reading(source: SourceConfig, *, same: bool) -> dict[str, Any]:
    """The part of a source's settings that another file is read by: of another kind of file, its fields alone."""
    about = {"paths", "exclude", "kind", "encoding", "name", "subset", "split", "label", "weight", "epochs"}
    settings = source.model_dump(exclude=about)
    return (
        settings
        if same
        else {name: settings[name] for name in ("field", "target_field", "layout", "fields", "defaults")}
    )


def _names(field: str) -> list[str]:
    return TextField(field, "--data").names


def _made(settings: dict[str, Any]) -> SourceConfig:
    try:
        return SourceConfig.model_validate(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"--data {settings['paths'][0]}: {problem['msg'].removeprefix('Value error, ')}") from None
