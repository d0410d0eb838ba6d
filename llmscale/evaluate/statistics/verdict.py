"""What is claimed of a difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmscale.evaluate.statistics.difference import Difference
from llmscale.evaluate.statistics.interval import Interval, error_rate
from llmscale.evaluate.statistics.several import holm

Word = Literal["better", "worse", "equal", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """A claim about a model beside another, with what it rests on."""

    word: Word
    p_value: float
    """Of no difference, for all comparisons together (Holm)."""
    equivalence: float | None
    """P-value of a difference of delta or more, likewise; None without delta."""
    delta: float | None
    more_items: int | None
    """About how many more would tell, where it cannot be told; None where no number would, or where it is no matter
    of items."""
    why: str = ""
    """What stands in the way, where it is no matter of items."""

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.word == "equal":
            return f"equal within {self.delta:g}"
        if self.word != "cannot tell":
            return self.word
        if self.more_items is not None:
            return f"cannot tell: about {_two_digits(self.more_items):,} more items would"
        return f"cannot tell: {self.why}"


def judge(
    differences: Sequence[Difference],
    higher_is_better: Sequence[bool],
    level: float = 0.95,
    deltas: Sequence[float | None] | None = None,
    noises: Sequence[Interval | None] | None = None,
) -> list[Verdict]:
    """Judge several comparisons so that with probability `level` no difference is claimed where there is none.

    Holm's correction is over all of them; likewise for equivalence. Where a difference lies within delta it is called
    equal, even if it is surely not 0.

    Args:
        deltas: of each comparison, where there is a least difference that matters.
        noises: of training (`training_noise`), where known: a difference must be beyond it too.
    """
    p_values = holm([difference.test.p_value for difference in differences])
    each_delta = deltas or [None] * len(differences)
    equivalences = holm(
        [
            difference.equivalence(delta)
            for difference, delta in zip(differences, each_delta, strict=True)
            if delta is not None
        ]
    )
    remaining = iter(equivalences)
    each = 1 - error_rate(level) / max(1, len(differences))
    return [
        _judge(difference, p_value, next(remaining) if delta is not None else None, delta, above, noise, level, each)
        for difference, p_value, delta, above, noise in zip(
            differences, p_values, each_delta, higher_is_better, noises or [None] * len(differences), strict=True
        )
    ]


def _judge(
    difference: Difference,
    p_value: float,
    equivalence: float | None,
    delta: float | None,
    higher_is_better: bool,
    noise: Interval | None,
    level: float,
    each: float,
) -> Verdict:
    word: Word = "cannot tell"
    more, why = None, ""
    if delta is not None and equivalence is not None and equivalence <= error_rate(level):
        if noise is None or (-delta < noise.low and noise.high < delta):
            word = "equal"
        else:
            why = f"the items show less than {delta:g}, but the noise of training is more"
    elif p_value <= error_rate(level):
        if noise is not None and noise.low <= 0 <= noise.high:
            why = "beyond the noise of items, but within that of training"
        else:
            word = "better" if (difference.value > 0) == higher_is_better else "worse"
    else:
        more = _more_items(difference, delta, each)
        why = "" if more else _why_no_number(difference, delta)
    return Verdict(word, p_value, equivalence, delta, more, why)


def _more_items(difference: Difference, delta: float | None, each: float) -> int | None:
    """About how many more would tell that it is a difference, or that it is within delta."""
    needed = [difference.items_needed(each)]
    if delta is not None:
        needed.append(difference.items_needed_within(delta, each))
    numbers = [number for number in needed if number is not None]
    return max(1, min(numbers) - difference.n) if numbers else None


def _why_no_number(difference: Difference, delta: float | None) -> str:
    if difference.value != 0:
        return "too few items to say how many would"
    return "no difference so far" + ("; --delta asks whether it is equal" if delta is None else "")


def _two_digits(number: int) -> int:
    """Rounded up to two digits, since it is an estimate."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit
