"""Topics with their words and texts, ready to be written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.base.errors import UserError
from llmscale.topics.clusters import centres, cluster, components
from llmscale.topics.scores import coherence, mutual_information, purity
from llmscale.topics.terms import best_terms, class_tf_idf, count_words, stop_words

COHERENT = 10
"""Words of a topic that its coherence looks at."""
_EXAMPLES = 5


@dataclass(frozen=True)
class Topic:
    """One topic."""

    number: int
    size: int
    terms: list[tuple[str, float]]
    """Words and their weights, the highest first."""
    examples: list[int]
    """Numbers of the texts nearest to its centre, different ones."""
    coherence: float | None
    """None for fewer than two words."""
    labels: dict[str, int]
    """How many of its texts have each label, the commonest first."""


@dataclass(frozen=True)
class Topics:
    """What was found in texts."""

    topics: list[Topic]
    of_texts: list[int]
    """The topic of each text."""
    map: np.ndarray
    """(N, 2) the first two principal components of the vectors."""
    stop_words: list[str]
    coherence: float | None
    """The mean over topics."""
    purity: float | None
    """Where there are labels, as is the next."""
    mutual_information: float | None


def find_topics(
    texts: Sequence[str],
    vectors: np.ndarray,
    topics: int | None,
    *,
    labels: Sequence[str] | None = None,
    terms: int = 10,
    seed: int = 0,
) -> Topics:
    """Cluster vectors and describe the clusters by the words of their texts.

    Args:
        vectors: (N, channels), one for each text.
        topics: how many; None: as `clusters.cluster` finds.
        terms: words of a topic.

    Raises:
        UserError: texts without any word, or as `clusters.cluster`.
    """
    found = cluster(vectors, topics, seed)
    counts = count_words(texts)
    if not counts.words:
        raise UserError("--input has no word that occurs in two texts; give more text")
    stopped = stop_words(counts, found)
    weights = class_tf_idf(counts, found, stopped)
    has = (counts.matrix > 0).astype(np.int64).tocsc()
    places = {word: place for place, word in enumerate(counts.words)}
    middles = centres(vectors, found)
    listed = []
    for number, middle in enumerate(middles):
        members = np.flatnonzero(found == number)
        own = best_terms(weights[number], counts.words, max(terms, COHERENT))
        fit = coherence([places[word] for word, _ in own[:COHERENT]], has)
        listed.append(
            Topic(
                number,
                len(members),
                own[:terms],
                _nearest(members, vectors, middle, texts),
                None if math.isnan(fit) else fit,
                dict(Counter(labels[member] for member in members.tolist()).most_common()) if labels else {},
            )
        )
    fits = [topic.coherence for topic in listed if topic.coherence is not None]
    return Topics(
        listed,
        found.tolist(),
        _plane(vectors),
        [counts.words[place] for place in np.flatnonzero(stopped).tolist()],
        float(np.mean(fits)) if fits else None,
        purity(found.tolist(), labels) if labels else None,
        mutual_information(found.tolist(), labels) if labels else None,
    )


def _nearest(members: np.ndarray, vectors: np.ndarray, middle: np.ndarray, texts: Sequence[str]) -> list[int]:
    chosen: dict[str, int] = {}
    order = np.argsort(((vectors[members] - middle) ** 2).sum(1), kind="stable")
    for member in members[order].tolist():
        chosen.setdefault(texts[member], member)
        if len(chosen) == _EXAMPLES:
            break
    return list(chosen.values())


def _plane(vectors: np.ndarray) -> np.ndarray:
    """(N, 2): of fewer dimensions filled up with 0."""
    plane: np.ndarray = components(vectors, 2)
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def as_json(found: Topics, texts: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """What `topics.json` holds; `about`: how it was made."""
    return {
        **about,
        "texts": len(texts),
        "coherence": found.coherence,
        "purity": found.purity,
        "mutual_information": found.mutual_information,
        "stop_words": found.stop_words,
        "topics": [
            {
                "topic": topic.number,
                "size": topic.size,
                "coherence": topic.coherence,
                "terms": [{"word": word, "weight": weight} for word, weight in topic.terms],
                "labels": topic.labels,
                "examples": [{"text": number, "words": texts[number]} for number in topic.examples],
            }
            for topic in found.topics
        ],
    }
