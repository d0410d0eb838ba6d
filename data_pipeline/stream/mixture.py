"""Which source each sample comes from: a function of the sample's number alone, with exact shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.base.random import uniforms
from data_pipeline.config import DataConfig

WINDOW = 1024
"""Samples over which every source gets its share, to within one sample."""
_LARGEST_LOG = 600.0
"""Powers of weights up to e to this, and sums of them, are within the range of floats."""
_GOLDEN = (5**0.5 - 1) / 2


class Mixture:
    """Groups of sources that share the samples. Without weights all sources are one group."""

    def __init__(self, config: DataConfig, sizes: Sequence[int], targets_per_sample: int, seed: int) -> None:
        """
        Args:
            config: sources with their weights, and the stages.
            sizes: bytes of each source.
            targets_per_sample: target tokens of a sample, by which the stages' tokens are counted.
            seed: decides the order within a window.

        Raises:
            UserError: weights for some sources only, a stage that names an unknown source, gives no share to any, or
                does not come after the one before.
        """
        self._seed = seed
        self.labels = [source.label or str(i) for i, source in enumerate(config.sources)]
        twice = [label for label in self.labels if self.labels.count(label) > 1]
        if twice:
            raise UserError(f"data.sources: the label {twice[0]!r} stands twice; give each source a label of its own")
        weights = _weights(config, sizes)
        self.group_of_source = [0] * len(sizes) if weights is None else list(range(len(sizes)))
        """The group of each source."""
        self.groups = 1 if weights is None else len(sizes)
        if weights is None:
            self.labels = ["all"]
            if config.mixture.stages:
                raise UserError(
                    "data.mixture.stages change the shares of data.sources, which have no weight; give each source a"
                    " weight (or epochs)"
                )
        self._starts = [0]
        shares = [_shares(weights or [1.0], config.mixture.temperature)]
        for index, stage in enumerate(config.mixture.stages):
            where = f"data.mixture.stages.{index}"
            unknown = [label for label in stage.weights if label not in self.labels]
            if unknown:
                raise UserError(f"{where}.weights: no source is called {unknown[0]!r}; there are {self.labels}")
            if min(stage.weights.values(), default=0) < 0 or sum(stage.weights.values()) <= 0:
                raise UserError(f"{where}.weights are {stage.weights}; give at least one source a weight above 0")
            start = stage.from_tokens // targets_per_sample
            if start <= self._starts[-1]:
                raise UserError(
                    f"{where}.from_tokens ({stage.from_tokens}) is not a sample after the stage before it begins; order"
                    f" the stages, at least {targets_per_sample} tokens apart"
                )
            self._starts.append(start)
            shares.append(_shares([stage.weights.get(label, 0.0) for label in self.labels], config.mixture.temperature))
        self._edges = [np.cumsum(share) for share in shares]
        self._window = lru_cache(maxsize=8)(self._make_window)
        self._before = lru_cache(maxsize=8)(lambda stage, window: self.counts(self._starts[stage] + window * WINDOW))

    def group(self, k: int) -> int:
        """The group that gives sample k."""
        if self.groups == 1:
            return 0
        stage, window, place = self._locate(k)
        return int(self._window(stage, window)[place])

    def place(self, k: int) -> tuple[int, int]:
        """The group that gives sample k, and how many samples it gave before."""
        if self.groups == 1:
            return 0, k
        stage, window, place = self._locate(k)
        members = self._window(stage, window)
        group = int(members[place])
        return group, self._before(stage, window)[group] + int((members[:place] == group).sum())

    def counts(self, samples: int) -> list[int]:
        """How many of the first `samples` samples each group gives."""
        total = np.zeros(self.groups, dtype=np.int64)
        for stage, (start, stop) in enumerate(itertools.pairwise([*self._starts, None])):
            length = max(0, min(samples, samples if stop is None else stop) - (start or 0))
            whole, rest = divmod(length, WINDOW)
            total += np.diff(self._below(stage, np.arange(whole)).sum(axis=0), prepend=0)
            total += np.bincount(self._window(stage, whole)[:rest], minlength=self.groups)
        return total.tolist()

    def _locate(self, k: int) -> tuple[int, int, int]:
        """Stage, window of the stage, and place in the window."""
        stage = int(np.searchsorted(self._starts, k, side="right")) - 1
        return stage, *divmod(k - self._starts[stage], WINDOW)

    def _below(self, stage: int, windows: np.ndarray) -> np.ndarray:
        """(len(windows), groups): how many of a window's places belong to a group or one before it."""
        # Place j of a window stands for the number (j + offset) / WINDOW; offsets spread evenly over the windows.
        offsets = (windows * _GOLDEN) % 1.0
        below = np.ceil(self._edges[stage][None, :] * WINDOW - offsets[:, None])
        below[:, -1] = WINDOW
        return np.clip(below, 0, WINDOW).astype(np.int64)

    def _make_window(self, stage: int, window: int) -> np.ndarray:
        quotas = np.diff(self._below(stage, np.array([window]))[0], prepend=0)
        order = np.argsort(uniforms(WINDOW, "mixture", self._seed, stage, window), kind="stable")
        return np.repeat(np.arange(self.groups), quotas)[order]


def _weights(config: DataConfig, sizes: Sequence[int]) -> list[float] | None:
    """The weight of each source; None where none has one."""
    given = [source.weight is not None or source.epochs is not None for source in config.sources]
    if not any(given):
        return None
    for index, source in enumerate(config.sources):
        if not given[index]:
            other = given.index(True)
            raise UserError(
                f"data.sources.{index} has no weight, but data.sources.{other} has one; give all sources a weight or"
                f" epochs, or none"
            )
        if source.weight is not None and source.epochs is not None:
            raise UserError(f"data.sources.{index} has a weight and epochs ({source.epochs}); give one of them")
    kinds = {source.weight is None for source in config.sources}
    if len(kinds) > 1:
        raise UserError("data.sources: some have a weight and some epochs, which cannot be compared; use one of them")
    if kinds == {True}:
        return [size * (source.epochs or 0.0) for size, source in zip(sizes, config.sources, strict=True)]
    return [source.weight or 0.0 for source in config.sources]


def _shares(weights: Sequence[float], temperature: float) -> np.ndarray:
    """(len(weights),): weight^(1 / temperature), divided by the sum of all."""
    logs = [math.log(weight) if weight else -math.inf for weight in weights]
    if all(abs(log) <= _LARGEST_LOG * temperature for log in logs if log > -math.inf):
        # Round figures stay exact, such as a share of 3/4, which logarithms could move over the edge of a sample.
        scaled = np.array([weight ** (1 / temperature) if weight else 0.0 for weight in weights])
    else:
        most = max(logs)
        scaled = np.array([math.exp((log - most) / temperature) for log in logs])
    return scaled / scaled.sum()
