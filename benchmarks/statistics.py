"""How often comparisons and confidence sequences are wrong, over simulated pairs of models.

Prints one JSON line. Each setting is a population of items, of which so many are contested on average: only one of the
two models is right. `level` is 95 % everywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmscale.evaluate.statistics import look_level, paired_confidence_sequence, paired_difference
from llmscale.evaluate.statistics.paired import PairedDifference
from llmscale.evaluate.statistics.power import flip_power, mcnemar_power, student_power

ERROR = 0.05
CONTESTED = (1, 2, 5, 10, 20, 50, 100, 200)
CLUSTERED = ((20, 10), (50, 20), (100, 40), (100, 80), (200, 120), (200, 200))
"""Clusters and contested items."""
CONTINUOUS = (6, 8, 12)
"""Clusters of scores that are no 0 or 1."""
ADVANTAGES = (0.5, 0.65, 0.8)
"""Share of contested items that the first model is right on; with the first there is no difference."""


@dataclass(frozen=True)
class Setting:
    """What came of one population."""

    name: str
    contested: int
    """On average; clusters, where all items have a difference."""
    advantage: float
    pairs: int
    rejected: float
    """Share of pairs in which a difference is found: false positives where there is none, else power."""
    covered: float
    """Share of pairs whose interval holds the true difference."""
    theory: float
    """Power by the formulas that say how many items would tell; nothing is known of it without a difference."""


def independent(contested: int, advantage: float, pairs: int, seed: int, n: int = 1000) -> Setting:
    """Scores of 0 and 1 of items that do not depend on each other."""
    generator = np.random.default_rng([seed, contested, round(100 * advantage)])
    share = contested / n
    totals = generator.binomial(n, share, pairs)
    better = generator.binomial(totals, advantage)
    counts, times = np.unique(np.stack([better, totals - better]), axis=1, return_counts=True)
    truth = share * (2 * advantage - 1)
    rejected = covered = 0
    for (larger, smaller), count in zip(counts.T.tolist(), times, strict=True):
        differences = np.zeros(n)
        differences[:larger], differences[larger : larger + smaller] = 1, -1
        pair = PairedDifference(differences, np.ones(n), n, larger, smaller, binary=True, clustered=False)
        interval = pair.interval()
        rejected += int(count) * (pair.test.p_value <= ERROR)
        covered += int(count) * (interval.low <= truth <= interval.high)
    theory = mcnemar_power(n, share * advantage, share * (1 - advantage))
    return Setting("independent", contested, advantage, pairs, rejected / pairs, covered / pairs, theory)


def clustered(clusters: int, contested: int, advantage: float, pairs: int, seed: int, each: int = 4) -> Setting:
    """Scores of 0 and 1 in clusters, each of which has an advantage of its own (a beta distribution), so that its
    contested items go together; half of the clusters have three times the items of the others."""
    generator = np.random.default_rng([seed, clusters, contested, round(100 * advantage)])
    sizes = np.tile([each // 2, each + each // 2], clusters // 2)
    share = contested / sizes.sum()
    truth = share * (2 * advantage - 1)
    rejected = covered = 0
    contested_clusters = 0.0
    estimates = []
    for _ in range(pairs):
        own = generator.beta(3 * advantage, 3 * (1 - advantage), clusters)
        totals = generator.binomial(sizes, share)
        larger = generator.binomial(totals, own)
        pair = PairedDifference(
            (2 * larger - totals).astype(float),
            sizes.astype(float),
            int(sizes.sum()),
            int(larger.sum()),
            int((totals - larger).sum()),
            binary=True,
            clustered=True,
        )
        interval = pair.interval()
        estimates.append(pair.value)
        contested_clusters += float((pair.differences != 0).mean())
        rejected += pair.test.p_value <= ERROR
        covered += bool(interval.low <= truth <= interval.high)
    # As if contested clusters differed by one size.
    error = mcnemar_power(clusters, contested_clusters / pairs / 2, contested_clusters / pairs / 2)
    theory = student_power(truth / float(np.std(estimates)), clusters - 1, 1 - error)
    return Setting(f"{clusters} clusters", contested, advantage, pairs, rejected / pairs, covered / pairs, theory)


def continuous(clusters: int, difference: float, pairs: int, seed: int) -> Setting:
    """Scores that are normal with an effect of each cluster, in few clusters of equal size."""
    generator = np.random.default_rng([seed, clusters, round(100 * difference)])
    rejected = covered = 0
    names = [str(cluster) for cluster in range(clusters) for _ in range(3)]
    for _ in range(pairs):
        scores = np.repeat(generator.normal(difference, 1, clusters), 3) + generator.normal(0, 1, 3 * clusters)
        pair = paired_difference(scores.tolist(), [0.0] * len(scores), names)
        interval = pair.interval()
        rejected += pair.test.p_value <= ERROR
        covered += interval.low <= difference <= interval.high
    theory = flip_power(difference / math.sqrt(1 + 1 / 3), clusters, ERROR)
    return Setting(
        f"{clusters} clusters, normal", clusters, difference, pairs, rejected / pairs, covered / pairs, theory
    )


def settings(pairs: int, seed: int) -> Iterator[Setting]:
    """Every population, with so many pairs of models each."""
    for advantage in ADVANTAGES:
        for contested in CONTESTED:
            yield independent(contested, advantage, pairs, seed)
        for clusters, contested in CLUSTERED:
            yield clustered(clusters, contested, advantage, pairs, seed)
    for difference in (0.0, 0.5, 1.0):
        for clusters in CONTINUOUS:
            yield continuous(clusters, difference, pairs, seed)


def alarms_of_growing_items(runs: int, looks: int, seed: int, each: int = 3) -> float:
    """Share of runs in which a confidence sequence ever leaves 0, of models that are no different: each look has new
    items, on a fifth of which one model alone is right."""
    alarms = 0
    for run in range(runs):
        signs = np.random.default_rng([seed, run]).choice([1.0, 0.0, -1.0], looks * each, p=[0.1, 0.8, 0.1])
        sequence = paired_confidence_sequence(
            np.maximum(signs, 0).tolist(), np.maximum(-signs, 0).tolist(), range(each, looks * each + 1, each)
        )
        alarms += any(interval.low > 0 or interval.high < 0 for interval in sequence)
    return alarms / runs


def alarms_of_same_items(runs: int, looks: int, seed: int, items: int = 300, planned: bool = False) -> float:
    """Share of runs in which two models that are no different are ever told apart, each checkpoint on the same items:
    what a model knows of an item changes slowly from checkpoint to checkpoint."""
    alarms = 0
    tests: dict[tuple[int, int], float] = {}
    for run in range(runs):
        generator = np.random.default_rng([seed, run])
        hard = generator.normal(0, 1, items)
        state = generator.normal(0, 1, (2, items))
        for look in range(1, looks + 1):
            right = state > hard
            counts = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
            if counts not in tests:
                differences = np.repeat([1.0, -1.0, 0.0], [*counts, items - sum(counts)])
                pair = PairedDifference(differences, np.ones(items), items, *counts, binary=True, clustered=False)
                tests[counts] = pair.test.p_value
            if tests[counts] <= 1 - look_level(look, looks=looks if planned else None):
                alarms += 1
                break
            state = 0.95 * state + math.sqrt(1 - 0.95**2) * generator.normal(0, 1, (2, items))
    return alarms / runs


def figures(pairs: int, runs: int, looks: int, seed: int) -> dict[str, Any]:
    """All of the figures that the bars are about, and each setting."""
    rows = []
    for setting in settings(pairs, seed):
        rows.append(setting)
        print(setting, file=sys.stderr, flush=True)
    null = [row for row in rows if row.advantage in (0.0, 0.5) and not (row.name.endswith("normal") and row.advantage)]
    other = [row for row in rows if row not in null]
    enough = [row for row in other if row.contested >= 10 or row.name.endswith("normal")]
    exact = [row for row in other if row.name == "independent" or row.name.endswith("normal")]
    dense = [row for row in other if row not in exact and row.contested >= 100]
    return {
        "false_positives": {"largest": max(row.rejected for row in null)},
        "coverage": {
            "least": min(row.covered for row in rows),
            "with a difference, from 10 contested": [
                min(row.covered for row in enough),
                max(row.covered for row in enough),
            ],
            "mean with a difference": float(np.mean([row.covered for row in other])),
        },
        "power_less_theory": {
            "independent items and normal scores": max(abs(row.rejected - row.theory) for row in exact),
            "clusters, from 100 contested": max(abs(row.rejected - row.theory) for row in dense),
            "clusters, all": max(abs(row.rejected - row.theory) for row in other),
        },
        "alarms": {
            "items that are added": alarms_of_growing_items(runs, looks, seed),
            "the same items": alarms_of_same_items(runs, looks, seed),
            "the same items, looks planned": alarms_of_same_items(runs, looks, seed, planned=True),
        },
        "settings": [asdict(row) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 10_000), ("runs", 1_000), ("looks", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = vars(parser.parse_args())
    print(json.dumps({"benchmark": "statistics", "sizes": sizes, "figures": figures(**sizes)}))


if __name__ == "__main__":
    main()
