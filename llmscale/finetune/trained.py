"""Which tensors of a model a run trains and which it re-initialises, and the factor of each one's learning rate."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from data_pipeline.base.errors import UserError
from llmscale.config.finetune import FinetuneConfig
from llmscale.config.model import ModelConfig
from llmscale.model.factors import is_factor
from llmscale.model.heads import all_heads

_LAYER = re.compile(r"(encoder\.)?blocks\.(\d+)\.")
EMBEDDINGS = ("embedding", "positions", "token_types", "embedding_norm")
"""Modules before the layers, which an encoder-decoder's two stacks share."""
_TOP = ("norm", "queries")
"""Modules of a stack that come after its layers, or with the last one."""
_SHOWN = 3
"""Names that a refusal offers."""


@dataclass(frozen=True)
class Training:
    """What becomes of each tensor of a model, by canonical name."""

    names: frozenset[str]
    """Those that are trained. All others are frozen."""
    redrawn: frozenset[str]
    """Those that begin from drawn values; all of them are trained."""
    factors: Mapping[str, float]
    """What multiplies the schedule's learning rate, where it is not 1."""

    def factor(self, name: str) -> float:
        """What multiplies the schedule's learning rate for a tensor."""
        return self.factors.get(name, 1.0)


def names_of(model: ModelConfig) -> tuple[str, ...]:
    """The canonical names of all tensors of a model, whatever ranks share them."""
    from llmscale.model import skeleton

    return tuple(name for name, _ in skeleton(model, model.vocab_size or 1).named_parameters())


def training_of(model: ModelConfig, settings: FinetuneConfig | None, names: Collection[str]) -> Training:
    """What a run trains of a model that has tensors of these names: everything without a `finetune` section.

    Raises:
        UserError: a mode that the architecture lacks, patterns that match nothing, or more layers than there are.
    """
    if settings is None:
        return Training(frozenset(names), frozenset(), {})
    redrawn = _redrawn(settings, model, names)
    trained = _selected(settings, model, names) | redrawn
    factors = {name: _factor(settings, model, name) for name in names}
    return Training(trained, redrawn, {name: factor for name, factor in factors.items() if factor != 1})


def part_of(model: ModelConfig, name: str) -> str:
    """The part of the model that a tensor belongs to: head, encoder, decoder, or `shared` by encoder and decoder."""
    module = name.partition(".")[0]
    if module in {head.attribute for head in all_heads()}:
        return "head"
    if model.architecture != "encoder_decoder":
        return model.architecture
    if module in EMBEDDINGS:
        return "shared"
    return "encoder" if module == "encoder" else "decoder"


def _selected(settings: FinetuneConfig, model: ModelConfig, names: Collection[str]) -> frozenset[str]:
    mode = settings.train
    if settings.lora is not None:
        factors = frozenset(filter(is_factor, names))
        if mode == "all":
            # A language model's head is trained well already; that of a task is new.
            return factors | {name for name in names if model.head is not None and part_of(model, name) == "head"}
        return factors | _selected(settings.model_copy(update={"lora": None}), model, names)
    if mode == "all":
        return frozenset(names)
    if mode == "layers":
        assert settings.layers is not None
        above = _above(model, settings.layers, "finetune.layers")
        return frozenset(name for name in names if above(name))
    return _matching([mode] if isinstance(mode, str) else mode, "finetune.train", model, names)


def _redrawn(settings: FinetuneConfig, model: ModelConfig, names: Collection[str]) -> frozenset[str]:
    found = _matching(settings.redraw, "finetune.redraw", model, names)
    if settings.redraw_layers:
        above = _above(model, settings.redraw_layers, "finetune.redraw_layers")
        found |= {name for name in names if _LAYER.match(name) and above(name)}
    return found


def _above(model: ModelConfig, count: int, key: str) -> Callable[[str], bool]:
    """Whether a tensor is of the last `count` layers or comes after them."""
    if count > model.layers:
        raise UserError(f"{key} is {count}, but the model has {model.layers} layers; set {key}={model.layers} or less")

    def above(name: str) -> bool:
        layer = _LAYER.match(name)
        if layer:
            return not layer[1] and int(layer[2]) >= model.layers - count
        return name.partition(".")[0] in _TOP or part_of(model, name) == "head"

    return above


def _matching(patterns: list[str], key: str, model: ModelConfig, names: Collection[str]) -> frozenset[str]:
    """The names that any of some patterns stands for."""
    found: set[str] = set()
    for pattern in patterns:
        if pattern in ("encoder", "decoder", "head"):
            matched = {name for name in names if part_of(model, name) == pattern}
            if not matched:
                raise UserError(_lacking(pattern, key, model))
        else:
            matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
            if not matched:
                near = _nearest(pattern, names)
                raise UserError(f"{key} has {pattern!r}, which no tensor of the model matches; the nearest are {near}")
        found |= matched
    return frozenset(found)


def _lacking(part: str, key: str, model: ModelConfig) -> str:
    if part == "head":
        return (
            f"{key} is head, but the head of this model is its embedding (model.tied_embeddings), which is no tensor of"
            f" its own; set {key} to ['embedding'], or to layers with finetune.layers"
        )
    return f"{key} is {part}, but model.architecture is {model.architecture}, which has no {part}; set {key} to all"


def _nearest(pattern: str, names: Collection[str]) -> str:
    """Names and modules that look most like a pattern."""
    modules = {".".join(parts[:end]) for name in names for parts in [name.split(".")] for end in range(1, len(parts))}
    known = sorted({*names, *modules})
    near = difflib.get_close_matches(pattern.replace("*", ""), known, n=_SHOWN, cutoff=0.4)
    return ", ".join(near or known[:_SHOWN])


def _factor(settings: FinetuneConfig, model: ModelConfig, name: str) -> float:
    """The factor of a tensor's learning rate: by its distance from the head, in layers of its own stack."""
    decay = settings.layer_lr_decay
    layer = _LAYER.match(name)
    if layer:
        layers = model.encoder_layer_count if layer[1] else model.layers
        return decay ** (layers - int(layer[2]))
    within = name.removeprefix("encoder.")
    if part_of(model, name) == "head" or within.partition(".")[0] in _TOP:
        return 1.0
    # What is left lies below the layers, or is a table that all of them share.
    layers = model.layers if within == name else model.encoder_layer_count
    own = settings.embedding_lr_factor if name.partition(".")[0] in EMBEDDINGS else 1.0
    return decay ** (layers + 1) * own
