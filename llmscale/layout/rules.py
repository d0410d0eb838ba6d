"""The rules of layouts, one function each, and the table of what is not proven yet."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from llmscale.config.optimizers import optimizer_kind
from llmscale.layout.facts import LayoutFacts
from llmscale.layout.layout import SETTINGS, Layout, wrong_product


class Violation(NamedTuple):
    """A rule that a layout breaks."""

    reason: str
    """Both values, as a clause."""
    otherwise: str = ""
    """A setting outside the layout that would help as well, such as `train.global_batch=9`."""


class Rule(NamedTuple):
    """A rule and the fields of a layout that it looks at."""

    reads: frozenset[str]
    broken: Callable[[LayoutFacts, Layout], Violation | None]


UNPROVEN: tuple[tuple[str, ...], ...] = (
    ("tensor", "whole_tensors"),
    ("expert", "whole_tensors"),
)
"""Refused until a parity test proves them equal to one process; that test's change deletes the row. A row is what may
not be in use together: a size above 1, a switch that is on, or `whole_tensors`: an optimizer that needs each matrix
whole."""


def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which they are checked."""
    return _rules(UNPROVEN)


def first_broken(facts: LayoutFacts, layout: Layout) -> Violation | None:
    """The first rule that a layout breaks; None when it is legal."""
    for rule in rules():
        broken = rule.broken(facts, layout)
        if broken:
            return broken
    return None


@lru_cache
def _rules(unproven: tuple[tuple[str, ...], ...]) -> tuple[Rule, ...]:
    return _PRODUCT, *(_unproven(row) for row in unproven), *_RULES


def _unproven(row: tuple[str, ...]) -> Rule:
    fields = tuple(feature for feature in row if feature != "whole_tensors")
    whole_tensors = len(fields) < len(row)

    def broken(facts: LayoutFacts, layout: Layout) -> Violation | None:
        if whole_tensors and not optimizer_kind(facts.optimizer).whole_tensors:
            return None
        for field in fields:
            if getattr(layout, field) == Layout._field_defaults[field]:
                return None
        used = [f"{SETTINGS[field]}={_written(getattr(layout, field))}" for field in fields]
        if whole_tensors:
            used.append(f"optimizer.name={facts.optimizer}, which needs whole tensors")
        first, *others = used
        return Violation(
            f"{first} is not proven equal to one process yet{''.join(f' with {other}' for other in others)}"
        )

    return Rule(frozenset(fields), broken)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _product(facts: LayoutFacts, layout: Layout) -> Violation | None:
    wrong = wrong_product(layout)
    return Violation(wrong) if wrong else None


def _batches(facts: LayoutFacts, layout: Layout) -> Violation | None:
    """Every rank must get as many samples of every step as the others, and whole lanes."""
    replicas = layout.replicas
    for name, share in facts.shares:
        if share % replicas:
            up = -(-share // replicas) * replicas
            return Violation(
                f"{name} ({share}) must be a multiple of the data-parallel size ({replicas})", f"{name}={up}"
            )
    return None


def _tensor(facts: LayoutFacts, layout: Layout) -> Violation | None:
    tensor = layout.tensor
    if facts.heads % tensor:
        return Violation(f"parallel.tensor ({tensor}) must divide model.heads ({facts.heads})")
    for name, width in facts.widths:
        if width % tensor:
            return Violation(f"parallel.tensor ({tensor}) must divide {name} ({width})")
    if facts.kv_heads % tensor and tensor % facts.kv_heads:
        return Violation(
            f"parallel.tensor ({tensor}) must divide model.kv_heads ({facts.kv_heads}), or be a multiple of it"
        )
    return None


def _context_heads(facts: LayoutFacts, layout: Layout) -> Violation | None:
    context, tensor = layout.context, layout.tensor
    heads = facts.heads // tensor
    kv_heads = max(facts.kv_heads // tensor, 1)
    shared = f" / parallel.tensor ({tensor}) = " if tensor > 1 else ""
    if heads % context:
        return Violation(
            f"parallel.context ({context}) must divide model.heads ({facts.heads}){shared and f'{shared}{heads}'}"
        )
    if kv_heads % context and context % kv_heads:
        return Violation(
            f"parallel.context ({context}) must divide model.kv_heads ({facts.kv_heads})"
            f"{shared and f'{shared}{kv_heads}'}, or be a multiple of it"
        )
    return None


def _context_model(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.context > 1 and facts.experts:
        return Violation(
            f"parallel.context is {layout.context}, but model.experts.count is {facts.experts}, whose router looks at"
            " whole sequences"
        )
    if layout.context > 1 and facts.whole_sequences:
        return Violation(
            f"parallel.context is {layout.context}, but the head {facts.whole_sequences[0]} looks at whole sequences"
        )
    return None


def _positions(facts: LayoutFacts, layout: Layout) -> Violation | None:
    """Ranks that share a sequence have equally many of its positions."""
    parts = layout.context * (layout.tensor if layout.sequence_parallel else 1)
    for name, length in facts.lengths:
        if length % parts:
            factors = [f"parallel.context ({layout.context})"] if layout.context > 1 else []
            if layout.sequence_parallel:
                factors.append(f"parallel.tensor ({layout.tensor}, with parallel.sequence_parallel)")
            return Violation(
                f"{' x '.join(factors)}{f' = {parts}' if len(factors) > 1 else ''} must divide {name} ({length} tokens)"
            )
    return None


def _sequence_parallel(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.sequence_parallel and layout.tensor == 1:
        return Violation("parallel.sequence_parallel is true, but parallel.tensor is 1: nobody shares the positions")
    return None


def _pipeline_zero(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.pipeline > 1 and layout.zero_stage > 1:
        return Violation(
            f"parallel.pipeline is {layout.pipeline}, which needs engine.zero_stage 1, but that is {layout.zero_stage}"
        )
    return None


def _pipeline_model(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.pipeline == 1:
        return None
    given = f"parallel.pipeline is {layout.pipeline}"
    if facts.encoder_decoder:
        return Violation(
            f"{given}, but model.architecture is encoder_decoder, whose two stacks make no one line of stages"
        )
    if facts.experts:
        return Violation(f"{given}, but model.experts.count is {facts.experts}; a pipeline takes dense layers only")
    if facts.whole_batches:
        return Violation(
            f"{given}, but the head {facts.whole_batches[0]} compares all samples of a global batch, of which stages"
            " pass on some at a time"
        )
    if layout.pipeline > facts.layers:
        return Violation(f"parallel.pipeline ({layout.pipeline}) exceeds model.layers ({facts.layers})")
    return None


def _pipeline_context(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.pipeline > 1 and layout.context > 1:
        return Violation(
            f"parallel.pipeline is {layout.pipeline} and parallel.context {layout.context}, but stages pass whole"
            " sequences on"
        )
    return None


def _expert_model(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.expert > 1 and not facts.experts:
        return Violation(f"parallel.expert is {layout.expert}, but model.experts is null: there are none to share")
    if facts.experts % layout.expert:
        return Violation(f"parallel.expert ({layout.expert}) must divide model.experts.count ({facts.experts})")
    return None


def _expert_data(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.replicas % layout.expert:
        return Violation(f"parallel.expert ({layout.expert}) must divide the data-parallel size ({layout.replicas})")
    return None


def _expert_zero(facts: LayoutFacts, layout: Layout) -> Violation | None:
    if layout.expert > 1 and layout.zero_stage == 3:
        return Violation(f"parallel.expert is {layout.expert}, which needs engine.zero_stage 1 or 2, but that is 3")
    return None


_SIZES = frozenset({"ranks", "pipeline", "data", "context", "tensor"})

_PRODUCT = Rule(_SIZES, _product)

_RULES = (
    Rule(frozenset({"tensor"}), _tensor),
    Rule(frozenset({"sequence_parallel", "tensor"}), _sequence_parallel),
    Rule(frozenset({"context"}), _context_model),
    Rule(frozenset({"context", "tensor"}), _context_heads),
    Rule(frozenset({"context", "tensor", "sequence_parallel"}), _positions),
    Rule(frozenset({"pipeline"}), _pipeline_model),
    Rule(frozenset({"pipeline", "zero_stage"}), _pipeline_zero),
    Rule(frozenset({"pipeline", "context"}), _pipeline_context),
    Rule(frozenset({"expert"}), _expert_model),
    Rule(frozenset({"expert", "zero_stage"}), _expert_zero),
    Rule(_SIZES | {"expert"}, _expert_data),
    Rule(_SIZES, _batches),
)
