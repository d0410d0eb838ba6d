"""The words that tell a topic from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmscale.topics.words import Words

_FREQUENT = 0.05
"""Share of a topic's texts from which on a word is frequent in it."""
_SEVERAL = 0.4
"""Share of the topics that a stop word is frequent in, two at least."""


@dataclass(frozen=True)
class Counts:
    """How often words occur in texts."""

    words: list[str]
    matrix: Any
    """(texts, words), sparse."""


def count_words(texts: Sequence[str]) -> Counts:
    """The words of texts that occur in two of them at least, where there are many texts."""
    from sklearn.feature_extraction.text import CountVectorizer

    splitter = Words(texts)
    vectorizer = CountVectorizer(analyzer=splitter.split, min_df=2 if len(texts) >= 100 else 1)
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # no word at all, or none that is there twice
        return Counts([], None)
    return Counts(vectorizer.get_feature_names_out().tolist(), matrix)


def stop_words(counts: Counts, topics: np.ndarray) -> np.ndarray:
    """(words,) booleans: words that are frequent in several topics, and so tell none of them, in any language."""
    has = counts.matrix > 0
    frequent = [
        np.asarray(has[members].mean(0))[0] >= _FREQUENT
        for members in (np.flatnonzero(topics == topic) for topic in range(topics.max() + 1))
    ]
    return np.sum(frequent, axis=0) >= max(2, _SEVERAL * len(frequent))  # type: ignore[no-any-return]


def class_tf_idf(counts: Counts, topics: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """(topics, words) c-TF-IDF (Grootendorst 2022, equation 2): a word's share of a topic's words, times the logarithm
    of 1 + (mean words of a topic) / (how often it occurs in all); 0 for stop words."""
    by_topic = np.stack([np.asarray(counts.matrix[topics == topic].sum(0))[0] for topic in range(topics.max() + 1)])
    by_topic = by_topic.astype(np.float64) * ~stopped
    words = by_topic.sum(1)
    rarity = np.log1p(words.mean() / np.maximum(by_topic.sum(0), 1))
    return by_topic / np.maximum(words, 1)[:, None] * rarity


def best_terms(weights: np.ndarray, words: Sequence[str], most: int) -> list[tuple[str, float]]:
    """The words of the highest weights of a topic, the highest first."""
    order = sorted(np.flatnonzero(weights > 0).tolist(), key=lambda word: (-weights[word], words[word]))
    return [(words[word], float(weights[word])) for word in order[:most]]
