"""CMRC 2018's rule of comparing answers, in Chinese (Cui et al. 2019): characters, and their longest common run.

Text of other scripts is split into words as by the tokenizer of NLTK that the published script takes, but for
apostrophes, which stay in their words, and straight quotation marks, of which those that open and close are alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmscale.evaluate.metrics.texts import f_score

_SIGNS = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_WITHOUT_SIGNS = str.maketrans("", "", _SIGNS)
_HAN = "\u4e00-\u9fa5"
_ALONE = re.escape(';@#$%&?![](){}<>"«»‘„\u2012\u2013\u2014\u2015')
"""Signs that are units."""
_LAST_STOP = rf"\.(?=[\])}}>\"'\s]*(?:[{_HAN}]|$))"
_UNITS = re.compile(rf"[{_HAN}]|\.{{2,}}|(?:[^\s{_HAN}{_ALONE}.,]|(?!{_LAST_STOP})\.(?!\.)|,(?=\d))+|\S")
"""A full stop is a unit at the end alone, and a comma where no digit follows."""


def normalised(text: str) -> str:
    """Lower case, without the signs of the published list."""
    return text.lower().strip().translate(_WITHOUT_SIGNS)


def units(text: str) -> list[str]:
    """Chinese characters one by one, other words whole."""
    return _UNITS.findall(normalised(text))


def exact(reference: str, text: str) -> float:
    return float(normalised(reference) == normalised(text))


def f1(reference: str, text: str) -> float:
    """F1 by the longest run of units that both hold."""
    right, written = units(reference), units(text)
    common = _longest_common_run(right, written)
    return f_score(common / len(written), common / len(right)) if common else 0.0


def _longest_common_run(left: Sequence[str], right: Sequence[str]) -> int:
    longest = 0
    ending_before = [0] * (len(right) + 1)
    for unit in left:
        ending_here = [0] * (len(right) + 1)
        for place, other in enumerate(right, start=1):
            if unit == other:
                ending_here[place] = ending_before[place - 1] + 1
        longest = max(longest, *ending_here)
        ending_before = ending_here
    return longest
