"""Which of transformers' classes a model is, and its config.json in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.contrastive import ContrastiveObjective
from llmscale import families
from llmscale.config import ModelConfig
from llmscale.config.function import function_of, resolved
from llmscale.config.model import OF_HEADS, HeadConfig
from llmscale.families.hugging_face import (
    HuggingFace,
    Settings,
    Unsupported,
    read_settings,
    write_settings,
)
from llmscale.model.heads import all_heads, heads_of

OWN = "llmscale"
"""`model_type` of models that transformers has no class for, under our own names."""
_CAUSES = {
    "window": ("attention_pattern",),
    "max_positions": ("position_offset",),
    "rotary_base": ("positions", "attention_pattern"),
    "rotary_local_base": ("positions", "attention_pattern"),
    **dict.fromkeys(("rotary_fraction", "rotary_interleaved", "rotary_pattern", "rotary_scaling"), ("positions",)),
    **dict.fromkeys(("relative_buckets", "relative_max_distance"), ("positions",)),
    "ffn_size": ("experts",),
}
"""Settings that others switch off, which are the ones to name where both differ."""

_THEIRS = {
    "window": "sliding_window",
    "head_size": "head_dim",
    "rotary_base": "rope_theta",
    "rotary_fraction": "partial_rotary_factor",
}
"""Keys of config.json by our settings, where they are not among a table's fields."""


def table_of(family: str) -> HuggingFace:
    """The table of a family that has one."""
    return families.family(family).HUGGING_FACE  # type: ignore[no-any-return]


def tables() -> dict[str, HuggingFace]:
    """The tables of all families that have one, by model_type."""
    return {table.model_type: table for table in map(table_of, families.with_class())}


def tokenizer_class(settings: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """transformers' class of a directory's tokenizer, without "Fast"; "" where nothing says it.

    Args:
        settings: tokenizer_config.json.
        values: config.json.
    """
    table = tables().get(str(values.get("model_type")))
    return str(settings.get("tokenizer_class") or (table.tokenizer if table else "")).removesuffix("Fast")


@dataclass(frozen=True)
class Recognised:
    """What a config.json describes."""

    table: HuggingFace
    model: dict[str, Any]
    """The model section, with vocab_size."""
    objective: dict[str, Any] | None
    """The objective section, where a head says of itself what it predicts."""
    notes: list[str]
    """What is not carried over, in sentences."""


def recognise(values: dict[str, Any], path: Path, embedding: ContrastiveObjective | None = None) -> Recognised:
    """The model that a config.json describes.

    Args:
        embedding: how a model without a head makes vectors, as other files say; None: they say nothing.

    Raises:
        UserError: an unknown model_type or class, an option that our model does not have, or a size that cannot be.
    """
    known = tables()
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"{path}: model_type is {kind!r:.60}, but llmscale reads {', '.join(sorted(known))} and {OWN};"
            f" import one of them"
        )
    table = known[kind]
    classes = values.get("architectures") or []
    settings = Settings(values)
    try:
        head = _head_of(table, classes if isinstance(classes, list) else [], settings)
        if embedding is not None and classes == [table.headless] and table.architecture != "encoder_decoder":
            head = embedding.head(table.architecture), embedding.model_dump(mode="json")
    except Unsupported as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(classes, list) or (classes and not head and not any(name in table.classes for name in classes)):
        named = ", ".join(map(str, classes)) if isinstance(classes, list) else repr(classes)
        raise UserError(
            f"{path}: architectures is {named:.200}, but llmscale reads"
            f" {' or '.join((*table.classes, *(head.name for head in table.heads.values())))};"
            f" import a model of such a class"
        )
    try:
        model = read_settings(table, settings)
        if head is not None:
            model["head"] = head[0]
        ModelConfig.model_validate(model)
    except Unsupported as error:
        raise UserError(f"{path}: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path} gives a model that cannot be: {_problem(table, error)}; repair it") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} has a value of the wrong kind ({type(error).__name__}: {error}); repair it") from None
    return Recognised(table_of(model["family"]), model, None if head is None else head[1], settings.notes)


def _head_of(
    table: HuggingFace, classes: list[Any], settings: Settings
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The head in place of the language model's that one of the classes has, and the objective it is trained by."""
    found = (head.read(str(name), table, settings) for name in classes for head in all_heads())
    return next((each for each in found if each is not None), None)


def _problem(table: HuggingFace, error: ValidationError) -> str:
    """What is wrong with a model section, by the key of the config.json that it comes from."""
    problem = error.errors()[0]
    ours = ".".join(str(part) for part in problem["loc"])
    if not ours:
        return problem["msg"].removeprefix("Value error, ")
    names = {**_THEIRS, **{setting: key for key, setting, _ in table.fields}}
    for setting, keys in (("dropout", table.dropout), ("attention_dropout", table.attention_dropout)):
        names[setting] = " and ".join(keys)
    wrong = problem["msg"].replace("Input should", "should").removeprefix("Value error, ")
    return f"{names.get(ours, ours)} is {problem['input']!r:.60}, but {wrong}"


@dataclass(frozen=True)
class Misfit:
    """No class of transformers computes what the model computes."""

    table: HuggingFace
    """The nearest one."""
    reason: str
    """Which option stands in the way."""


def fit(
    model: ModelConfig,
    vocab_size: int,
    token_ids: Callable[[HuggingFace], dict[str, Any]],
    objective: Mapping[str, Any] | None = None,
) -> tuple[HuggingFace, dict[str, Any]] | Misfit:
    """The class that computes what a model computes, with its config.json, or what stands in the way.

    A class fits if what would be written reads back as the same function; the model's own family is asked first, and
    before classes that only repeat an older one those of that.

    Args:
        token_ids: the keys of special tokens of a class.
        objective: the section that the model was trained by, of which heads tell more than the model does.
    """
    order = sorted(families.with_class(), key=lambda name: (name != model.family, table_of(name).repeats is not None))
    misfits: list[tuple[int, Misfit]] = []
    whole = resolved(model)
    for name in order:
        table = table_of(name)
        written = write_settings(table, whole, vocab_size) | token_ids(table)
        written |= _written_head(model, table, objective or {})
        reasons = _differences(model, table, name, written)
        if not reasons and (need := table.needs and table.needs(whole)):
            reasons = [need]
        if not reasons:
            return table, written
        misfits.append((len(reasons) - 1000 * (name == model.family), Misfit(table, reasons[0])))
    return min(misfits, key=lambda pair: pair[0])[1]


def _differences(model: ModelConfig, table: HuggingFace, name: str, written: dict[str, Any]) -> list[str]:
    far = [""] * len(ModelConfig.model_fields)  # farther than any class with single differences
    settings = Settings(written)
    try:
        class_name = heads_of(model)[0].class_name(table)
        head = _head_of(table, [class_name], settings) if class_name is not None else None
        back = ModelConfig.model_validate(read_settings(table, settings))
    except (Unsupported, ValidationError) as error:
        return [str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error), *far]
    if table_of(back.family or name) is not table:
        return [f"model.activation is {model.activation}, where this class has {back.activation}", *far]
    ours, theirs = function_of(model), function_of(back)
    if model.head is not None:
        if class_name is None:
            return [f"model.head is {model.head.name}, which none of its classes has", *far]
        ours = {key: value for key, value in ours.items() if key not in OF_HEADS} | _parts(model.head.model_dump())
        told = model.head.model_dump() if heads_of(model)[0].told_beside else head[0] if head else None
        theirs = {**theirs, **_parts(HeadConfig.model_validate(told).model_dump() if told else {})}
    differing = [key for key in ours if ours[key] != theirs.get(key)]
    return [
        f"model.{key} is {_shown(ours[key])}, where {written['architectures'][0]} has {_shown(theirs.get(key))}"
        for key in sorted(differing, key=lambda key: any(cause in differing for cause in _CAUSES.get(key, ())))
    ]


def _parts(head: dict[str, Any]) -> dict[str, Any]:
    return {f"head.{key}": value for key, value in head.items()}


def _written_head(model: ModelConfig, table: HuggingFace, objective: Mapping[str, Any]) -> dict[str, Any]:
    """What a head in place of the language model's adds to a config.json."""
    if model.head is None:
        return {}
    head = heads_of(model)[0]
    return {"architectures": [head.class_name(table) or table.classes[0]], **head.write(table, objective)}


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
