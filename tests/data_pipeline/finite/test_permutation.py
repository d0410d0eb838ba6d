"""Random orders: each place once, for every size; as uniform as chance; pinned, since a run depends on them."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from data_pipeline.finite.permutation import LARGEST, Permutation


def test_every_place_once_for_every_small_size() -> None:
    for n in range(1, 2001):
        assert (np.bincount(Permutation(n, 1, n)(np.arange(n)), minlength=n) == 1).all()


@pytest.mark.parametrize("n", [65_536, 65_537, 300_007, 1_048_575])
def test_every_place_once_for_larger_sizes(n: int) -> None:
    values = np.concatenate([Permutation(n, 5)(block) for block in np.array_split(np.arange(n), 9)])
    assert (np.bincount(values, minlength=n) == 1).all()


@pytest.mark.parametrize("n", [2**31 + 11, 2**40 - 87, 2**47 + 1, LARGEST])
def test_huge_sizes_stay_in_range_without_repeats(n: int) -> None:
    places = np.unique(np.random.default_rng(0).integers(0, n, 50_000))
    places = np.union1d(places, [0, 1, n - 2, n - 1])
    values = Permutation(n, 7, 3)(places)
    assert values.min() >= 0
    assert values.max() < n
    assert len(np.unique(values)) == len(places)
    counts = np.bincount(values * 16 // n, minlength=16)
    expected = len(places) / 16
    assert chi_square(counts, expected) < 15 + 5 * math.sqrt(30)


def test_a_place_gives_the_same_alone_and_in_any_shape() -> None:
    order = Permutation(1000, 4)
    places = np.arange(1000)
    assert (order(places.reshape(10, 100)).ravel() == order(places)).all()
    assert [int(order(np.array(place))) for place in range(1000)] == order(places).tolist()
    assert order(np.array([], dtype=np.int64)).shape == (0,)


def test_keys_give_orders_that_are_independent() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (10,), (2**40,)]
    orders = [Permutation(10_000, *key)(np.arange(10_000)) for key in keys]
    for a, b in itertools.combinations(orders, 2):
        # Two independent orders agree in one place on average.
        assert (a == b).sum() < 10


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_orders_of_few_samples_are_equally_likely(n: int) -> None:
    keys = 3000
    seen = Counter(tuple(Permutation(n, 7, key)(np.arange(n)).tolist()) for key in range(keys))
    counts = np.array([seen[order] for order in itertools.permutations(range(n))])
    freedom = len(counts) - 1
    assert chi_square(counts, keys / len(counts)) < freedom + 5 * math.sqrt(2 * freedom)


def test_where_a_sample_lands_and_its_distance_to_the_next_are_uniform() -> None:
    n, keys = 300, 2000
    orders = np.array([Permutation(n, 9, key)(np.arange(n)) for key in range(keys)])
    landed = np.array([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    freedom = (n - 1) ** 2
    assert chi_square(landed, keys / n) < freedom + 5 * math.sqrt(2 * freedom)
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % n).ravel(), minlength=n)[1:]
    assert chi_square(steps, steps.sum() / (n - 1)) < n - 2 + 5 * math.sqrt(2 * (n - 2))


def test_the_order_never_changes() -> None:
    assert Permutation(10, 0, 0)(np.arange(10)).tolist() == [1, 7, 5, 4, 9, 6, 3, 0, 8, 2]
    assert Permutation(1000, 0, 0)(np.arange(6)).tolist() == [352, 653, 603, 867, 826, 232]
    assert Permutation(10**12, 3, 1)(np.arange(3)).tolist() == [67175583904, 891970000287, 348605742022]


def test_impossible_sizes_and_places_are_refused() -> None:
    for n in (0, -1, LARGEST + 1):
        with pytest.raises(ValueError, match=str(n)):
            Permutation(n)
    for place in (-1, 10):
        with pytest.raises(IndexError, match=r"not all in range\(10\)"):
            Permutation(10)(np.array([0, place]))


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2 / expected).sum())
