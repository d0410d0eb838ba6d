"""CMRC 2018's rule of comparing answers, in Chinese (Cui et al. 2019): characters, and their longest common run.

Text of other scripts is split into numbers, words and single signs. The published script takes NLTK's tokenizer there,
which differs in quotation marks, contractions and abbreviations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmscale.evaluate.metrics.texts import f_score

_SIGNS = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_WITHOUT_SIGNS = str.maketrans("", "", _SIGNS)
_UNITS = re.compile(r"[\u4e00-\u9fa5]|\d+(?:[.,]\d+)*|(?:(?![\u4e00-\u9fa5])\w)+|[^\w\s]")


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
