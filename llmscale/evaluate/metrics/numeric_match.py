"""Whether the number that an answer ends with is right: GSM8K (Cobbe et al. 2021), whose solutions end "#### 18"."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from llmscale.evaluate.metrics.base import ItemMean, Option, Options
from llmscale.evaluate.metrics.texts import text_metric

_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_COMPARE = {"compare": Option("number", allowed=("number", "text"))}
"""As numbers, 18 and 18.00 are equal; as texts, which is lm-eval's rule, they are not."""


def _marked(text: str) -> str | None:
    """The number behind the first mark."""
    match = _MARKED.search(text)
    return match[1] if match else None


def _last(text: str) -> str | None:
    """The last number."""
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _bare(number: str) -> str:
    """Without separators of thousands, signs of currency, the full stop of the sentence, and all up to the mark."""
    return number.rpartition("#### ")[2].replace(",", "").replace("$", "").removesuffix(".").strip().lower()


def _equal(right: str, written: str, compare: str) -> bool:
    if compare == "number":
        try:
            return Decimal(right) == Decimal(written)
        except InvalidOperation:
            pass
    return right == written


def _metric(name: str, summary: str, extract: Callable[[str], str | None]) -> ItemMean:
    def matches(reference: str, text: str, options: Options) -> float:
        written = extract(text)
        return float(written is not None and _equal(_bare(reference), _bare(written), options["compare"]))

    return text_metric(name, summary, matches, _COMPARE)


METRICS = (
    _metric("numeric_match", 'the number behind "####" is right (GSM8K, strict)', _marked),
    _metric("numeric_match_flexible", "the last number of the text is right (GSM8K, flexible)", _last),
)
