"""Search among layouts: all that are legal, and the legal ones nearest to one that is not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from llmscale.layout.facts import LayoutFacts
from llmscale.layout.layout import AXES, Layout
from llmscale.layout.rules import Rule, first_broken, rules

_ORDER = (
    "zero_stage", "compile", "activation_checkpointing", "pipeline", "context", "tensor", "sequence_parallel", "data",
    "ranks", "expert",
)  # fmt: skip
"""The order in which a search sets what it may change: what follows from others comes after them."""

_CHECKPOINTING = ("none", "selective", "block")
"""By the memory that they save."""


def nearest_layouts(facts: LayoutFacts, layout: Layout) -> tuple[Layout, ...]:
    """The legal layouts with the fewest changed fields, the least changed first.

    The number of ranks is such a field. Among the changes of the same fields only the smallest is given; where one
    number alone changes, the smallest in either direction. A change is measured as |log(new / old)|; a switch that is
    flipped counts as a doubling, and so does each degree of recomputation. One process is always legal, so there
    always is an answer.
    """
    changeable = tuple(field for field in _ORDER if field != "data" or layout.data is not None)
    broken = [rule.reads for rule in rules() if rule.broken(facts, layout)]
    for count in range(1, len(changeable) + 1):
        found: list[tuple[float, Layout]] = []
        for fields in itertools.combinations(changeable, count):
            if all(not reads.isdisjoint(fields) for reads in broken):
                found += (
                    _nearest_on_each_side(facts, layout, *fields) if count == 1 else _nearest(facts, layout, fields)
                )
        if found:
            # Rounded, so that a doubling and a halving are a tie, in which the number of ranks stays as it is.
            return tuple(near for _, near in sorted(found, key=lambda pair: round(pair[0], 9)))
    raise AssertionError(f"not even one process is legal: {first_broken(facts, Layout())}")


def all_layouts(facts: LayoutFacts, start: Layout, fields: Iterable[str]) -> Iterator[Layout]:
    """Every legal layout that differs from `start` in no other fields than these; the data-parallel size is given."""
    ordered = tuple(field for field in _ORDER if field in set(fields))
    for _, layout in _assignments(facts, start, ordered):
        yield layout


def divisors(number: int) -> tuple[int, ...]:
    """All divisors of a number, the smallest first."""
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return tuple(dict.fromkeys([*small, *(number // candidate for candidate in reversed(small))]))


class _Limit:
    """The most that a change may cost to be of interest still."""

    def __init__(self) -> None:
        self.cost = math.inf


def _nearest(facts: LayoutFacts, layout: Layout, fields: tuple[str, ...]) -> list[tuple[float, Layout]]:
    """The nearest legal layout that changes all these fields and no others, if there is one."""
    limit = _Limit()
    best: list[tuple[float, Layout]] = []
    for cost, near in _assignments(facts, layout, fields, limit):
        limit.cost = cost
        best = [(cost, near)]
    return best


def _nearest_on_each_side(facts: LayoutFacts, layout: Layout, field: str) -> list[tuple[float, Layout]]:
    sides: dict[bool, tuple[float, Layout]] = {}
    for cost, near in _assignments(facts, layout, (field,), _Limit()):
        # The cheapest comes first.
        sides.setdefault(_amount(getattr(near, field)) > _amount(getattr(layout, field)), (cost, near))
    return list(sides.values())


def _assignments(
    facts: LayoutFacts, start: Layout, fields: tuple[str, ...], limit: _Limit | None = None
) -> Iterator[tuple[float, Layout]]:
    """(cost, layout) of all legal layouts in which `fields` have other values than in `start`, below a falling limit.

    Without a limit the fields may also keep their values. A rule is checked as soon as all that it reads is set.
    """
    before, after = _checks(fields, rules())

    def descend(depth: int, layout: Layout, spent: float) -> Iterator[tuple[float, Layout]]:
        if depth == len(fields):
            yield spent, layout
            return
        field = fields[depth]
        old = getattr(start, field)
        values = [(0.0, value) for value in _values(facts, layout, field, fields)]
        if limit is not None:
            values = sorted(
                ((_distance(old, value), value) for _, value in values if value != old), key=lambda pair: pair[0]
            )
        for cost, value in values:
            if limit is not None and spent + cost >= limit.cost:
                return
            changed = layout._replace(**{field: value})
            if not any(rule.broken(facts, changed) for rule in after[depth]):
                yield from descend(depth + 1, changed, spent + cost)

    if not any(rule.broken(facts, start) for rule in before):
        yield from descend(0, start, 0.0)


@lru_cache(maxsize=4096)
def _checks(fields: tuple[str, ...], every: tuple[Rule, ...]) -> tuple[list[Rule], list[list[Rule]]]:
    """The rules that read none of the fields, and for each field those that read it and none that is set later."""
    before: list[Rule] = []
    after: list[list[Rule]] = [[] for _ in fields]
    for rule in every:
        places = [place for place, field in enumerate(fields) if field in rule.reads]
        (after[places[-1]] if places else before).append(rule)
    return before, after


def _values(facts: LayoutFacts, layout: Layout, field: str, fields: tuple[str, ...]) -> Iterable[Any]:
    """Values of a field, given those set before it in `_ORDER`, among which are all that can be legal."""
    if field == "data":
        if "ranks" in fields:
            return divisors(facts.widest_data)
        return () if layout.ranks % layout.inner else (layout.ranks // layout.inner,)
    if field == "ranks":
        sizes = divisors(facts.widest_data) if layout.data is None else (layout.data,)
        return [layout.inner * size for size in sizes]
    values = _own_values(facts, field)
    if field in AXES and "ranks" not in fields:
        return [value for value in values if layout.ranks % value == 0]
    return values


@lru_cache(maxsize=4096)
def _own_values(facts: LayoutFacts, field: str) -> tuple[Any, ...]:
    switches: dict[str, tuple[Any, ...]] = {
        "zero_stage": (1, 2, 3),
        "compile": (False, True),
        # Where two are equally near, the one that saves memory comes first.
        "activation_checkpointing": tuple(reversed(_CHECKPOINTING)),
        "sequence_parallel": (False, True),
    }
    if field in switches:
        return switches[field]
    if field == "pipeline":
        return tuple(range(1, facts.layers + 1))
    return divisors({"tensor": facts.widest_tensor, "context": facts.widest_context}.get(field, facts.experts or 1))


def _amount(value: Any) -> float:
    """Numbers as they are, switches as powers of two."""
    if isinstance(value, str):
        return float(2 ** _CHECKPOINTING.index(value))
    return 1.0 + value if isinstance(value, bool) else float(value)


def _distance(old: Any, new: Any) -> float:
    return abs(math.log(_amount(new) / _amount(old)))
