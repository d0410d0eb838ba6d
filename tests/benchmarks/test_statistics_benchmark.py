"""Over simulated models: no more false positives than the level says, covered truths, and the power of theory."""

import itertools

import pytest

from benchmarks import statistics

PAIRS = 10_000
NOISE = 0.01
"""Two standard errors of a share of `PAIRS` pairs, at most."""


@pytest.mark.parametrize("contested", statistics.CONTESTED)
def test_items_that_do_not_depend_on_each_other(contested: int) -> None:
    for advantage in statistics.ADVANTAGES:
        setting = statistics.independent(contested, advantage, PAIRS, seed=1)
        assert setting.rejected == pytest.approx(setting.theory, abs=NOISE)
        assert setting.covered >= 0.94
        if advantage == 0.5:
            assert setting.rejected <= 0.05
        elif contested >= 10:
            assert 0.93 <= setting.covered <= 0.98


def test_few_pairs_of_clusters() -> None:
    null, other = (statistics.clustered(100, 80, advantage, 400, seed=1) for advantage in (0.5, 0.65))
    assert null.rejected <= 0.08
    assert min(null.covered, other.covered) >= 0.92
    assert other.rejected == pytest.approx(other.theory, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "contested"), statistics.CLUSTERED)
def test_items_in_clusters(clusters: int, contested: int) -> None:
    for advantage in statistics.ADVANTAGES:
        setting = statistics.clustered(clusters, contested, advantage, PAIRS, seed=1)
        if advantage == 0.5:
            assert setting.rejected <= 0.05
        assert 0.94 <= setting.covered <= (0.99 if contested < 80 or advantage == 0.5 else 0.97)
        if contested >= 100:
            assert setting.rejected == pytest.approx(setting.theory, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "difference"), itertools.product(statistics.CONTINUOUS, (0.0, 0.5, 1.0)))
def test_few_clusters_of_other_scores(clusters: int, difference: float) -> None:
    setting = statistics.continuous(clusters, difference, PAIRS, seed=1)
    assert 0.93 <= setting.covered <= 0.975
    assert setting.rejected == pytest.approx(setting.theory, abs=0.02)
    if difference == 0:
        assert setting.rejected <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_models_that_are_no_different_seldom_alarm_however_often_one_looks() -> None:
    assert statistics.alarms_of_growing_items(1000, 200, seed=1) <= 0.05
    assert statistics.alarms_of_same_items(1000, 200, seed=1) <= 0.05
    assert statistics.alarms_of_same_items(1000, 200, seed=1, planned=True) <= 0.05


def test_few_looks_of_few_runs() -> None:
    assert statistics.alarms_of_growing_items(40, 20, seed=1) <= 0.1
    assert statistics.alarms_of_same_items(40, 20, seed=1) <= 0.1
