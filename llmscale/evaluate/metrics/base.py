"""What a metric is, and how its figure over records comes with an interval: by a mean, a ratio of sums, or a corpus.

A metric states its kinds, what it needs of a record, its options and its computation; everything else is here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data_pipeline.base.errors import UserError
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.statistics import (
    Interval,
    corpus_interval,
    group_mean_interval,
    mean_interval,
    ratio_interval,
)

KINDS = ("choice", "likelihood", "perplexity", "minimal_pair", "generate", "classify", "span", "tag")
"""Kinds of tasks."""
LEVEL = 0.95
"""Confidence level of intervals, unless the option `level` says otherwise."""

Options = Mapping[str, Any]
Statistic = Callable[[Sequence[int]], float]
"""The figure of the records at these places, which may repeat."""


@dataclass(frozen=True)
class Option:
    """A setting of a metric. Its type is that of its default."""

    default: Any
    allowed: tuple[Any, ...] = ()
    """All values there are; empty where any value of the type is one."""
    least: float | None = None
    """The least value of a number."""

    def read(self, metric: str, name: str, value: Any) -> Any:
        """A value of the option's type from a value or from its text; raises UserError for one that is not allowed."""
        wanted = type(self.default)
        if wanted is bool:
            value = {"true": True, "false": False}.get(str(value).lower(), value)
        elif isinstance(value, str) or (wanted is float and type(value) is int):
            value = _converted(wanted, value)
        right_type = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if right_type and self._allows(value):
            return value
        raise UserError(f"option {name} of metric {metric} is {value!r}; give {self._what()}")

    def _allows(self, value: Any) -> bool:
        if self.least is not None and not self.least <= value < math.inf:
            return False
        return not self.allowed or value in self.allowed

    def _what(self) -> str:
        if self.allowed:
            return f"one of {', '.join(map(str, self.allowed))}"
        if isinstance(self.default, bool):
            return "true or false"
        kind = {int: "a whole number", float: "a number"}.get(type(self.default), "a text")
        return kind if self.least is None else f"{kind} of at least {self.least}"


def _converted(wanted: type, value: Any) -> Any:
    try:
        return wanted(value)
    except ValueError:
        return value


@dataclass(frozen=True)
class Figure:
    """A metric over the records of a task."""

    name: str
    """The metric as it was asked for, options included."""
    value: float
    low: float
    high: float
    """Ends of the interval; NaN where items are not finite numbers, so that there is none."""
    n: int
    """Number of records."""
    clusters: int
    """Independent units: clusters of records, or records where there are none."""
    method: str
    """How the interval was made."""
    signature: str
    """The rule and its options, so that equal signatures are comparable figures."""
    higher_is_better: bool
    level: float
    """Of confidence of the interval."""
    standard_error: float
    """Of the value; NaN where the method has none."""
    by_group: dict[str, float] | None = None
    """The metric of each group alone, where records have groups."""
    macro: Interval | None = None
    """The mean over groups, each counting the same, with its own interval."""


@dataclass(frozen=True)
class Metric(ABC):
    """A metric, by one name. Subclasses say how a figure comes of records."""

    name: str
    summary: str
    """One line for lists of metrics."""
    kinds: tuple[str, ...]
    """Kinds of tasks whose records it fits."""
    needs: tuple[str, ...]
    """What it needs of a record: names of `NEEDS`."""
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    """The least and the greatest possible value."""
    options: Mapping[str, Option] = field(default_factory=dict)
    sign: Callable[[Sequence[Record], Options], str] | None = None
    """The signature, where it is not the name with its options."""

    @abstractmethod
    def item_value(self, record: Record, options: Options) -> float | None:
        """The value of one record, or None where only many have one."""

    @abstractmethod
    def statistic(self, records: Sequence[Record], options: Options) -> Statistic:
        """The figure of any of these records, by their places; slow work on a record is done once, here."""

    @abstractmethod
    def interval(self, statistic: Any, n: int, clusters: list[str] | None, options: Options) -> Interval:
        """The figure of all n records with its interval, from their `statistic`."""

    def with_defaults(self, given: Options) -> dict[str, Any]:
        """All options, `level` and `seed` included; raises UserError for an unknown one or a value not allowed."""
        known = {**self.options, "level": Option(LEVEL), "seed": Option(0, least=0)}
        for name in given:
            if name not in known:
                raise UserError(f"metric {self.name} has no option {name}; its options are {', '.join(known)}")
        options = {
            name: option.read(self.name, name, given.get(name, option.default)) for name, option in known.items()
        }
        if not 0 < options["level"] < 1:
            raise UserError(f"option level of metric {self.name} is {options['level']}; give a number between 0 and 1")
        return options

    def check(self, record: Record) -> None:
        """Raises UserError where the record lacks what the metric needs."""
        for need in self.needs:
            lack = NEEDS[need](record)
            if lack:
                fits = " or ".join(self.kinds)
                raise UserError(
                    f"metric {self.name} cannot be computed of item {record.number}: {lack}; "
                    f"it fits tasks of kind {fits}"
                )

    def figure(self, records: Sequence[Record], options: Options, asked: str) -> Figure:
        """The figure over all records; the arguments have been checked."""
        n, clusters, groups = len(records), _clusters(records), _groups(records)
        statistic = self.statistic(records, options)
        interval = self.interval(statistic, n, clusters, options)
        by_group = None
        if groups is not None:
            by_group = {group: statistic(places) for group, places in _places_by_group(groups, range(n)).items()}
        return Figure(
            name=asked,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            n=n,
            clusters=interval.clusters,
            method=interval.method,
            signature=self.signature(records, options),
            higher_is_better=self.higher_is_better,
            level=options["level"],
            standard_error=interval.standard_error,
            by_group=by_group,
            macro=None if groups is None else self.macro(statistic, groups, clusters, options),
        )

    def macro(self, statistic: Any, groups: list[str], clusters: list[str] | None, options: Options) -> Interval:
        """The mean over groups of the metric of each group alone, from the `statistic` of all records."""

        def mean_over_groups(places: Sequence[int]) -> float:
            return _mean([statistic(within) for within in _places_by_group(groups, places).values()])

        return self.jackknife(mean_over_groups, len(groups), clusters, options)

    def jackknife(self, statistic: Statistic, n: int, clusters: list[str] | None, options: Options) -> Interval:
        """The interval of a figure that is no mean."""
        return corpus_interval(statistic, n, clusters, options["level"], options["seed"], self.bounds)

    def signature(self, records: Sequence[Record], options: Options) -> str:
        if self.sign is not None:
            return self.sign(records, options)
        return "|".join([self.name, *(f"{name}:{options[name]}" for name in self.options)])


@dataclass(frozen=True)
class MeanOf:
    """The mean of the values of some records."""

    values: Sequence[float]

    def __call__(self, places: Sequence[int]) -> float:
        return _mean([self.values[place] for place in places])


@dataclass(frozen=True)
class RatioOf:
    """A function of the sum of numerators over the sum of denominators of some records."""

    numerators: Sequence[float]
    denominators: Sequence[float]
    transform: Callable[[float], float]

    def __call__(self, places: Sequence[int]) -> float:
        above = [self.numerators[place] for place in places]
        return self.transform(math.fsum(above) / math.fsum(self.denominators[place] for place in places))


@dataclass(frozen=True)
class ItemMean(Metric):
    """The mean of a value of each record: Wilson's interval for 0 and 1, else Student's t."""

    value: Callable[[Record, Options], float] = field(kw_only=True)

    def item_value(self, record: Record, options: Options) -> float:
        return self.value(record, options)

    def statistic(self, records: Sequence[Record], options: Options) -> MeanOf:
        return MeanOf([float(self.value(record, options)) for record in records])

    def interval(self, statistic: MeanOf, n: int, clusters: list[str] | None, options: Options) -> Interval:
        if not all(map(math.isfinite, statistic.values)):
            return without_interval(statistic(range(n)), statistic.values, clusters, options)
        return mean_interval(statistic.values, clusters, options["level"], self.bounds)

    def macro(self, statistic: MeanOf, groups: list[str], clusters: list[str] | None, options: Options) -> Interval:
        if not all(map(math.isfinite, statistic.values)):
            by_group = _places_by_group(groups, range(len(groups)))
            return without_interval(_mean(list(map(statistic, by_group.values()))), statistic.values, clusters, options)
        return group_mean_interval(statistic.values, groups, clusters, options["level"], self.bounds)


@dataclass(frozen=True)
class Ratio(Metric):
    """A sum over a sum, such as nats over tokens, and a rising function of it, such as perplexity."""

    terms: Callable[[Record, Options], tuple[float, float]] = field(kw_only=True)
    """What a record adds to the numerator and to the denominator, which is above 0."""
    transform: Callable[[float], float] = field(default=float, kw_only=True)
    ratio_bounds: tuple[float, float] = field(default=(0.0, math.inf), kw_only=True)
    """The least and the greatest possible ratio, before the function."""

    def item_value(self, record: Record, options: Options) -> float:
        numerator, denominator = self.terms(record, options)
        return self.transform(numerator / denominator)

    def statistic(self, records: Sequence[Record], options: Options) -> RatioOf:
        terms = [self.terms(record, options) for record in records]
        return RatioOf([above for above, _ in terms], [below for _, below in terms], self.transform)

    def interval(self, statistic: RatioOf, n: int, clusters: list[str] | None, options: Options) -> Interval:
        above, below = statistic.numerators, statistic.denominators
        if not all(map(math.isfinite, above)):
            return without_interval(statistic(range(n)), above, clusters, options)
        ratio = ratio_interval(above, below, clusters, options["level"], self.ratio_bounds)
        if self.transform is float:
            return ratio
        value, low, high = map(self.transform, (ratio.value, ratio.low, ratio.high))
        return replace(ratio, value=value, low=low, high=high, standard_error=math.nan)


@dataclass(frozen=True)
class Corpus(Metric):
    """A figure that is no mean over records. Its interval is that of a jackknife over records or clusters."""

    prepare: Callable[[Sequence[Record], Options], Statistic] = field(kw_only=True)
    value: Callable[[Record, Options], float] | None = field(default=None, kw_only=True)
    """The value of one record, where it has one."""

    def item_value(self, record: Record, options: Options) -> float | None:
        return None if self.value is None else self.value(record, options)

    def statistic(self, records: Sequence[Record], options: Options) -> Statistic:
        return self.prepare(records, options)

    def interval(self, statistic: Statistic, n: int, clusters: list[str] | None, options: Options) -> Interval:
        return self.jackknife(statistic, n, clusters, options)


def without_interval(value: float, values: Sequence[float], clusters: list[str] | None, options: Options) -> Interval:
    """A figure of items some of which are not finite numbers, such as the log-probability of what has none."""
    count = sum(not math.isfinite(value) for value in values)
    method = f"none: {count} of {len(values)} items are not finite"
    units = len(values) if clusters is None else len(set(clusters))
    return Interval(value, math.nan, math.nan, len(values), units, method, options["level"])


def _mean(values: Sequence[float]) -> float:
    return (math.fsum(values) if all(map(math.isfinite, values)) else sum(values)) / len(values)


def _places_by_group(groups: Sequence[str], places: Sequence[int]) -> dict[str, list[int]]:
    by_group: dict[str, list[int]] = {}
    for place in places:
        by_group.setdefault(groups[place], []).append(place)
    return dict(sorted(by_group.items()))


def _clusters(records: Sequence[Record]) -> list[str] | None:
    """The cluster of each record, None where none has any; a record without one among others is its own."""
    if all(record.cluster is None for record in records):
        return None
    return [f"\0{place}" if record.cluster is None else record.cluster for place, record in enumerate(records)]


def _groups(records: Sequence[Record]) -> list[str] | None:
    groups = [record.group for record in records if record.group is not None]
    if not groups:
        return None
    if len(groups) < len(records):
        lacking = next(record.number for record in records if record.group is None)
        raise UserError(f"item {lacking} has no group and others do; give all items of the task a group, or none")
    return groups


def _no_choices(record: Record) -> str | None:
    number = len(record.answers) or len(record.probabilities)
    return f"it has {number} scored answers or labels, where 2 or more are needed" if number < 2 else None


def _no_answers(record: Record) -> str | None:
    if not record.answers:
        return "no text was scored"
    empty = [place for place, answer in enumerate(record.answers) if not answer.log_probabilities or answer.bytes < 1]
    return f"its text {empty[0]} is empty" if empty else None


def _no_gold(record: Record) -> str | None:
    number = len(record.answers) or len(record.probabilities)
    if not record.gold:
        return "it has no right answer"
    beyond = [place for place in record.gold if not 0 <= place < number]
    return f"its right answer is number {beyond[0]} of {number}, counted from 0" if beyond else None


def _no_neutral(record: Record) -> str | None:
    if len(record.neutral) == len(record.answers):
        return None
    return f"{len(record.neutral)} of its {len(record.answers)} answers were scored after the neutral context"


NEEDS: dict[str, Callable[[Record], str | None]] = {
    "choices": _no_choices,
    "answers": _no_answers,
    "gold": _no_gold,
    "neutral": _no_neutral,
    "words": lambda record: None if record.scored_words else "the number of words of its text was not counted",
    "references": lambda record: None if record.references else "it has no reference",
    "generated": lambda record: None if record.generated else "no text was generated",
    "tags": lambda record: (
        None
        if record.references and len(record.generated) == len(record.references)
        else f"it has {len(record.references)} right tags and {len(record.generated)} given ones"
    ),
    "one_generated": lambda record: (
        None if len(record.generated) == 1 else f"{len(record.generated)} texts were generated, where 1 is needed"
    ),
}
"""What a record may be asked for: what it lacks, in words, or None."""
