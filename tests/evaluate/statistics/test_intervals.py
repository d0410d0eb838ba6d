"""Intervals beside scipy's, beside matrices written out, and over simulated items."""

import math

import numpy as np
import pytest
from scipy import stats

from data_pipeline.base.errors import UserError
from llmscale.evaluate.statistics import (
    corpus_interval,
    exact_interval,
    group_mean_interval,
    mean_interval,
    proportion_interval,
    ratio_interval,
)


def ends(interval):
    return interval.low, interval.high


def draw(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n", [1, 2, 5, 17, 400])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_shares_have_the_intervals_of_scipy(n, level):
    for successes in {0, 1, n // 3, n - 1, n}:
        reference = stats.binomtest(successes, n)
        for interval, method in ((proportion_interval, "wilson"), (exact_interval, "exact")):
            expected = reference.proportion_ci(level, method)
            assert ends(interval(successes, n, level)) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_exact_intervals_cover_every_share_and_wilsons_do_on_average():
    n, shares = 20, np.linspace(0.005, 0.995, 199)
    covered = {}
    for interval in (proportion_interval, exact_interval):
        limits = [ends(interval(successes, n)) for successes in range(n + 1)]
        holds = np.array([[low <= share <= high for low, high in limits] for share in shares])
        covered[interval] = (stats.binom.pmf(np.arange(n + 1), n, shares[:, None]) * holds).sum(axis=1)
    assert covered[exact_interval].min() >= 0.95
    assert covered[proportion_interval].mean() == pytest.approx(0.95, abs=0.01)


def test_a_mean_without_clusters_has_students_interval():
    values = draw(0).normal(3, 2, 23)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    interval = mean_interval(values.tolist(), level=0.9)
    assert ends(interval) == pytest.approx((expected.low, expected.high))
    assert interval.standard_error == pytest.approx(stats.sem(values))
    assert (interval.n, interval.clusters) == (23, 23)


def test_clusters_of_one_size_have_students_interval_of_their_means():
    values = draw(1).normal(size=(9, 4)) + draw(2).normal(size=(9, 1))
    expected = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval()
    interval = mean_interval(values.ravel().tolist(), [f"c{cluster}" for cluster in range(9) for _ in range(4)])
    assert ends(interval) == pytest.approx((expected.low, expected.high))
    assert (interval.n, interval.clusters) == (36, 9)


def cr2(numerators, denominators, clusters):
    """Ratio, CR2 variance and Satterthwaite's degrees of freedom from the definitions: the regression of numerator /
    denominator on a constant with weights = denominators, with all matrices written out."""
    y, w = numerators / denominators, denominators
    names = sorted(set(clusters))
    members = [np.array([name == cluster for cluster in clusters]) for name in names]
    value = (w * y).sum() / w.sum()
    rows = []
    for member in members:
        share = w[member].sum() / w.sum()
        row = np.zeros(len(y))
        row[member] = w[member]
        # (I - H) of the cluster's weighted sum, H = 1 w' / sum(w).
        rows.append((row - share * w) / np.sqrt(1 - share) / w.sum())
    p = np.array(rows)
    variance = ((p @ y) ** 2).sum()
    freedoms = []
    same = np.array([[a == b for b in clusters] for a in clusters], dtype=float)
    for covariance in (np.diag(1 / w), same):  # items that do not depend on each other; alike within a cluster
        m = p @ covariance @ p.T
        freedoms.append(np.trace(m) ** 2 / np.trace(m @ m))
    return value, variance, min(freedoms)


def test_unequal_clusters_have_the_variance_and_the_degrees_of_freedom_of_their_definition():
    clusters = list("aaaaaaabbcddddeee")
    values, sizes = draw(3).normal(5, 1, 17), draw(4).integers(3, 90, 17).astype(float)
    for denominators, interval in (
        (np.ones(17), mean_interval(values.tolist(), clusters)),
        (sizes, ratio_interval(values.tolist(), sizes.tolist(), clusters)),
    ):
        value, variance, freedom = cr2(values, denominators, clusters)
        half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
        assert interval.value == pytest.approx(value)
        assert ends(interval) == pytest.approx((value - half, value + half))


def test_a_ratio_is_scaled_by_its_units():
    nats, sizes = draw(5).uniform(50, 90, 12), draw(6).integers(20, 200, 12)
    interval = ratio_interval(nats.tolist(), sizes.tolist())
    assert interval.value == pytest.approx(nats.sum() / sizes.sum())
    thousand = ratio_interval(nats.tolist(), (1000 * sizes).tolist())
    assert [1000 * end for end in ends(thousand)] == pytest.approx(list(ends(interval)))


def test_the_mean_over_two_groups_has_welchs_interval():
    first, second = draw(7).normal(2, 1, 12), draw(8).normal(-1, 3, 5)
    groups = ["a"] * 12 + ["b"] * 5
    # (m1 + m2) / 2 is half of m1 - (-m2).
    expected = stats.ttest_ind(first, -second, equal_var=False).confidence_interval()
    interval = group_mean_interval([*first, *second], groups)
    assert interval.value == pytest.approx((first.mean() + second.mean()) / 2)
    assert ends(interval) == pytest.approx((expected.low / 2, expected.high / 2))


def test_the_mean_over_groups_counts_small_groups_as_much_as_large_ones():
    values = [1.0] * 90 + [0.0] * 10
    groups = ["large"] * 90 + ["small"] * 10
    assert group_mean_interval(values, groups).value == 0.5
    assert mean_interval(values).value == 0.9


def test_the_mean_over_groups_covers_the_mean_of_groups_means():
    generator, covered, runs = draw(9), 0, 400
    truths = np.array([0.3, 0.5, 0.9, 0.97])
    groups = [str(group) for group in range(4) for _ in range(12)]
    for _ in range(runs):
        values = (generator.random((4, 12)) < truths[:, None]).astype(float).ravel()
        interval = group_mean_interval(values.tolist(), groups)
        covered += interval.low <= truths.mean() <= interval.high
    assert 0.93 <= covered / runs <= 0.98


def test_clusters_across_groups_widen_the_mean_over_groups():
    """Each cluster has an item in every group, and its items are alike: as many independent units as clusters."""
    effects = draw(10).normal(size=10)
    values = np.concatenate([effects, effects])
    groups, clusters = ["a"] * 10 + ["b"] * 10, [str(cluster) for cluster in range(10)] * 2
    interval = group_mean_interval(values.tolist(), groups, clusters)
    assert interval.standard_error == pytest.approx(stats.sem(effects))
    assert group_mean_interval(values.tolist(), groups).standard_error < 0.8 * interval.standard_error


def test_a_group_of_one_item_takes_the_spread_of_the_others():
    several = group_mean_interval([1.0, 3.0, 2.0, 4.0, 9.0], ["a", "a", "b", "b", "c"])
    # Each group's variance of an item is 2, so that the means have 1, 1 and 2.
    assert several.value == pytest.approx((2 + 3 + 9) / 3)
    assert several.standard_error == pytest.approx(math.sqrt(1 + 1 + 2) / 3)


def test_the_jackknife_of_a_mean_has_students_interval():
    values = draw(11).normal(size=40)
    interval = corpus_interval(lambda places: float(values[places].mean()), 40)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert ends(interval) == pytest.approx((expected.low, expected.high))


def test_the_jackknife_covers_a_correlation_and_its_parts_are_of_the_seed():
    generator, covered, runs = draw(12), 0, 40
    for _ in range(runs):
        x = generator.normal(size=60)
        y = 0.6 * x + 0.8 * generator.normal(size=60)
        interval = corpus_interval(lambda places, x=x, y=y: float(np.corrcoef(x[places], y[places])[0, 1]), 60)
        covered += interval.low <= 0.6 <= interval.high
    assert covered / runs >= 0.85
    values = draw(13).normal(size=900)

    def median(places):
        return float(np.median(values[places]))

    assert corpus_interval(median, 900, seed=1) == corpus_interval(median, 900, seed=1)
    assert corpus_interval(median, 900, seed=1) != corpus_interval(median, 900, seed=2)


def test_clusters_are_left_out_together():
    values = np.repeat(draw(14).normal(size=8), 5)
    clusters = [str(item // 5) for item in range(40)]
    interval = corpus_interval(lambda places: float(values[places].mean()), 40, clusters)
    expected = stats.ttest_1samp(values[::5], 0).confidence_interval()
    assert ends(interval) == pytest.approx((expected.low, expected.high))


def test_few_alike_items_do_not_make_a_score_certain():
    assert proportion_interval(5, 5).low < 0.6
    assert mean_interval([1.0] * 5).low < 0.6
    clustered = mean_interval([1.0] * 50, [str(item // 10) for item in range(50)])
    assert ends(clustered) == ends(proportion_interval(5, 5)), "five clusters of alike items tell what five items do"
    assert group_mean_interval([1.0] * 6, list("aabbcc")).low < 0.7
    assert corpus_interval(lambda places: 1.0, 5, bounds=(-1, 1)).low < 0.1
    half = mean_interval([0.5] * 5, bounds=(0, 1))
    assert half.low < 0.3
    # A share p of other items stays unseen in 5 with probability (1 - p)^5 = 2.5 %.
    assert half.high == pytest.approx(0.5 + (1 - 0.025**0.2) * 0.5)


@pytest.mark.parametrize(
    "interval",
    [
        mean_interval([2.5]),
        mean_interval([2.5, 1.0], ["a", "a"]),
        mean_interval([3.0, 3.0, 3.0]),
        ratio_interval([2.0], [4.0]),
        corpus_interval(lambda places: 2.5, 1),
        corpus_interval(lambda places: math.nan if len(places) < 3 else 1.0, 3),
    ],
)
def test_where_nothing_is_known_the_ends_are_infinite(interval):
    assert ends(interval) == (-math.inf, math.inf)


def test_ends_stay_within_what_is_possible():
    interval = mean_interval([0.9, 1.0, 0.95, 0.2], bounds=(0, 1))
    assert interval.high == 1.0
    assert interval.low == mean_interval([0.9, 1.0, 0.95, 0.2]).low


@pytest.mark.parametrize("clusters", [4, 8])
def test_means_of_few_unequal_clusters_are_covered(clusters):
    generator, covered, runs = draw(clusters), 0, 1000
    for _ in range(runs):
        sizes = 1 + generator.poisson(generator.gamma(1, 6, clusters))
        names = np.repeat(np.arange(clusters), sizes)
        values = generator.normal(size=clusters)[names] + generator.normal(size=len(names))
        interval = mean_interval(values.tolist(), names.tolist())
        covered += interval.low <= 0 <= interval.high
    assert 0.93 <= covered / runs <= 0.99


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_shares_of_clustered_items_are_covered(share):
    generator, covered, runs = draw(20), 0, 600
    names = [str(item // 6) for item in range(120)]
    for _ in range(runs):
        own = generator.beta(4 * share, 4 * (1 - share), 20)
        values = (generator.random((20, 6)) < own[:, None]).astype(float).ravel()
        interval = mean_interval(values.tolist(), names)
        assert 0 <= interval.low < interval.high <= 1
        covered += interval.low <= share <= interval.high
    assert 0.93 <= covered / runs <= 0.98


@pytest.mark.parametrize(
    "call",
    [
        lambda: proportion_interval(3, 2),
        lambda: proportion_interval(0, 0),
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, math.nan]),
        lambda: mean_interval([1.0, 2.0], ["a"]),
        lambda: ratio_interval([1.0, 2.0], [0.0, 0.0]),
        lambda: ratio_interval([1.0, 2.0], [1.0, -1.0]),
        lambda: corpus_interval(lambda places: 1.0, 0),
    ],
)
def test_what_has_no_interval_is_refused(call):
    with pytest.raises(ValueError, match=r"."):
        call()


def test_a_level_beyond_certainty_is_refused():
    with pytest.raises(UserError, match="level of confidence is 95, but must lie between 0 and 1"):
        mean_interval([1.0, 2.0], level=95)
