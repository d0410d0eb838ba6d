"""SQuAD's rule of comparing answers, in English (Rajpurkar et al. 2016, 2018): case, punctuation and articles aside."""

from __future__ import annotations

import re
import string
from collections import Counter

from llmscale.evaluate.metrics.texts import f_score

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, words parted by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact(reference: str, text: str) -> float:
    return float(normalised(reference) == normalised(text))


def f1(reference: str, text: str) -> float:
    """F1 of the words as bags. Where one has no words, 1 if the other has none either (version 2's rule)."""
    right, written = normalised(reference).split(), normalised(text).split()
    if not right or not written:
        return float(right == written)
    shared = (Counter(right) & Counter(written)).total()
    return f_score(shared / len(written), shared / len(right))
