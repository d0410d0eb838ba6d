"""How good topics are: by their own words, and by labels that they were not told."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np


def purity(topics: Sequence[int], labels: Sequence[str]) -> float:
    """Share of the texts whose label is the commonest one of their topic (Manning et al. 2008, section 16.3)."""
    commonest = Counter()  # type: ignore[var-annotated]
    for (topic, _), count in Counter(zip(topics, labels, strict=True)).items():
        commonest[topic] = max(commonest[topic], count)
    return sum(commonest.values()) / len(labels)


def mutual_information(topics: Sequence[int], labels: Sequence[str]) -> float:
    """Normalised by the mean of both entropies: 0 for independent ones, 1 for equal ones."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, topics))


def coherence(terms: Sequence[int], has: Any) -> float:
    """The mean over all pairs of words of their normalised pointwise mutual information (Bouma 2009; Lau et al. 2014)
    in texts: -1 for words that are never in one text, 0 for independent ones, 1 for those that always are.

    Args:
        terms: columns of the words.
        has: (texts, words) sparse: 1 where a word occurs.

    Returns:
        NaN for fewer than two words.
    """
    if len(terms) < 2:
        return math.nan
    own = has[:, list(terms)]
    together = np.asarray((own.T @ own).todense(), dtype=np.float64) / has.shape[0]
    return float(np.mean([_npmi(together, i, j) for i, j in itertools.combinations(range(len(terms)), 2)]))


def _npmi(together: np.ndarray, first: int, second: int) -> float:
    both = together[first, second]
    if both == 0:
        return -1.0
    if both == 1:
        return 1.0
    return float(math.log(both / (together[first, first] * together[second, second])) / -math.log(both))
