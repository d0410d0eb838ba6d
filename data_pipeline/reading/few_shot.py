"""Examples to show before an item: never the item itself, and the same ones whatever else is evaluated."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.base.random import seeds_of, split_mix


@dataclass(frozen=True)
class Example:
    """What may be shown."""

    content: str
    """Digest of its question: those that have it in common with an item are never shown before that."""
    text: str
    """As it is shown, answer included."""
    group: str | None = None
    """Such as its subject."""
    cluster: str | None = None
    """Such as its passage; examples of an item's own cluster are not shown either."""


class TooFewExamples(ValueError):
    """A pool has fewer examples than are asked for."""

    def __init__(self, available: int) -> None:
        super().__init__(f"{available} examples")
        self.available = available
        """Examples that may be shown before the item."""


class FewShotPool:
    """Where examples come from. Of examples with one content, the first counts."""

    def __init__(self, examples: Iterable[Example], *, within_group: bool = False) -> None:
        """`within_group`: an item is shown examples of its own group only."""
        self._within_group = within_group
        self._pools: dict[str | None, dict[str, Example]] = {}
        self._clusters: Counter[tuple[str | None, str]] = Counter()
        for example in examples:
            group = self._group(example)
            pool = self._pools.setdefault(group, {})
            if example.content not in pool:
                pool[example.content] = example
                if example.cluster is not None:
                    self._clusters[group, example.cluster] += 1
        self._lists = {group: list(pool.values()) for group, pool in self._pools.items()}

    def first(self, count: int, item: Example) -> list[Example]:
        """The first `count` examples that do not share the item's content or cluster.

        Raises:
            TooFewExamples: there are fewer.
        """
        self._require(count, item)
        allowed = (example for example in self._lists.get(self._group(item), []) if not _shares(example, item))
        return list(itertools.islice(allowed, count))

    def draw(self, count: int, item: Example, seed: int) -> list[Example]:
        """`count` such examples at random, each once: a function of the pool, the seed and the item's content.

        Raises:
            TooFewExamples: there are fewer.
        """
        self._require(count, item)
        pool = self._lists.get(self._group(item), [])
        key = seeds_of([("few-shot", seed, item.content)])
        drawn: dict[int, Example] = {}
        for number in itertools.count():
            if len(drawn) == count:
                break
            place = int(split_mix(key, np.array([number]))[0]) % len(pool)
            if not _shares(pool[place], item):
                drawn.setdefault(place, pool[place])
        return list(drawn.values())

    def _require(self, count: int, item: Example) -> None:
        group = self._group(item)
        pool = self._pools.get(group, {})
        same = pool.get(item.content)
        available = len(pool) - (self._clusters[group, item.cluster] if item.cluster is not None else 0)
        if same is not None and (item.cluster is None or same.cluster != item.cluster):
            available -= 1
        if available < count:
            raise TooFewExamples(available)

    def _group(self, example: Example) -> str | None:
        return example.group if self._within_group else None


def _shares(example: Example, item: Example) -> bool:
    same_cluster = item.cluster is not None and example.cluster == item.cluster
    return same_cluster or example.content == item.content


def content_digest(texts: Sequence[str]) -> str:
    """16 hexadecimal digits of some texts, by their words alone: case and blanks do not make another question."""
    words = "\0".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()[:16]
