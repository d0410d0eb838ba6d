"""Tests, intervals, equivalence and power of paired differences, beside enumerations and scipy."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llmscale.evaluate.statistics import CorpusDifference, holm, paired_difference
from llmscale.evaluate.statistics.power import flip_error, flip_power, mcnemar_power, student_power


def draw(seed):
    return np.random.default_rng(seed)


def contested(better, worse, n=100):
    """Two models of 0/1 scores, of which the first alone is right on `better` items and the second on `worse`."""
    first = [1.0] * better + [0.0] * worse
    second = [0.0] * better + [1.0] * worse
    return paired_difference(first + [1.0] * (n - len(first)), second + [1.0] * (n - len(second)))


def clustered_pair(generator, clusters=9, binary=True):
    sizes = generator.integers(1, 6, clusters)
    names = np.repeat(np.arange(clusters), sizes).tolist()
    if binary:
        scores, others = (generator.random((2, len(names))) < 0.6).astype(float)
    else:
        scores, others = generator.normal(size=(2, len(names)))
        scores = scores + generator.normal(0.4, 0.5, clusters)[names]
    return scores, others, [str(name) for name in names]


def flips(differences):
    """Sums for every choice of signs, that of the data first."""
    signs = itertools.product([1, -1], repeat=len(differences))
    return np.array([np.dot(sign, differences) for sign in signs])


def by_cluster(scores, others, names):
    return np.array(
        [
            sum(a - b for a, b, name in zip(scores, others, names, strict=True) if name == one)
            for one in sorted(set(names))
        ]
    )


def test_mcnemars_test_is_the_binomial_one():
    for better, worse in itertools.product(range(0, 40, 3), range(0, 40, 2)):
        pair = contested(better, worse)
        expected = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert pair.test.p_value == pytest.approx(expected, rel=1e-9)
        assert (pair.better, pair.worse) == (better, worse)
        assert pair.value == pytest.approx((better - worse) / 100)


@pytest.mark.parametrize("binary", [True, False])
def test_sign_flips_by_cluster_are_those_of_all_signs(binary):
    for seed in range(20):
        scores, others, names = clustered_pair(draw(seed), binary=binary)
        sums = np.abs(flips(by_cluster(scores, others, names)))
        pair = paired_difference(scores, others, names)
        assert pair.test.p_value == pytest.approx((sums >= sums[0] - 1e-9).mean())


def test_sign_flips_are_the_permutations_of_scipy():
    differences = draw(0).normal(0.5, 1, 11)
    expected = stats.permutation_test(
        (differences,), lambda values: values.mean(), permutation_type="samples", n_resamples=np.inf
    )
    assert paired_difference(differences, [0.0] * 11).test.p_value == pytest.approx(expected.pvalue)


def test_drawn_flips_are_close_to_all_of_them_and_never_certain():
    differences = draw(1).normal(0.35, 1, 16)
    sums = np.abs(flips(differences))
    exact = float((sums >= sums[0] - 1e-9).mean())
    drawn = paired_difference(differences, [0.0] * 16)
    assert drawn.test.p_value == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert drawn.test.p_value != paired_difference(differences, [0.0] * 16, seed=1).test.p_value
    assert paired_difference(differences + 9, [0.0] * 16).test.p_value >= 1 / 20_000


def test_many_clusters_of_whole_differences_are_exact():
    """Beyond what can be enumerated: the sum of 300 fair signs of sizes 1 and 2, by adding up one after the other."""
    sizes = draw(2).integers(1, 3, 300)
    distribution = {0: 1.0}
    for size in sizes.tolist():
        added: dict[int, float] = {}
        for total, mass in distribution.items():
            for sign in (size, -size):
                added[total + sign] = added.get(total + sign, 0.0) + mass / 2
        distribution = added
    names = np.repeat(np.arange(300), 2)
    signs = np.where(draw(3).random(300) < 0.56, 1, -1)
    scores, others = np.zeros(600), np.zeros(600)
    for cluster, (size, sign) in enumerate(zip(sizes, signs, strict=True)):
        chosen = scores if sign > 0 else others
        chosen[2 * cluster : 2 * cluster + size] = 1
    observed = abs(int((sizes * signs).sum()))
    expected = sum(mass for total, mass in distribution.items() if abs(total) >= observed)
    assert paired_difference(scores, others, [str(name) for name in names]).test.p_value == pytest.approx(expected)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99, 0.9999, 1 - 1e-7])
def test_an_interval_is_without_0_where_the_test_rejects_and_only_there(level):
    pairs = [contested(better, worse, n) for n in (40, 1000) for better in range(20) for worse in range(0, 20, 3)]
    pairs += [contested(30, 0, 40), contested(30, 0, 1000), contested(1, 40, 1000)]
    for seed in range(15):
        for clusters, binary in itertools.product((3, 7, 12, 40), (True, False)):
            pairs.append(paired_difference(*clustered_pair(draw(seed), clusters, binary)))
    rejected = 0
    for pair in pairs:
        interval = pair.interval(level)
        rejects = pair.test.p_value <= 1 - level
        assert rejects == (interval.low > 0 or interval.high < 0), (pair, interval, pair.test)
        assert interval.low <= pair.value <= interval.high
        rejected += rejects
    assert 0 < rejected < len(pairs)


def test_inverted_flips_hold_all_differences_that_flips_do_not_reject():
    scores, others, names = clustered_pair(draw(5), clusters=10, binary=False)
    differences = by_cluster(scores, others, names)
    sizes = np.array([names.count(name) for name in sorted(set(names))])
    interval = paired_difference(scores, others, names).interval(0.9)

    def rejected(assumed):
        sums = flips(differences - assumed * sizes)
        tail = min((sums >= sums[0] - 1e-9).mean(), (sums <= sums[0] + 1e-9).mean())
        return 2 * tail <= 0.1

    width = interval.high - interval.low
    for end, outwards in ((interval.low, -1), (interval.high, 1)):
        assert rejected(end + outwards * 1e-4 * width)
        assert not rejected(end - outwards * 1e-4 * width)


def test_with_five_clusters_no_difference_is_sure():
    interval = paired_difference([5.0, 6.0, 5.5, 7.0, 5.2], [0.0] * 5).interval()
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert math.isfinite(paired_difference([5.0, 6.0, 5.5, 7.0, 5.2, 5.1], [0.0] * 6).interval().low)


def test_few_items_without_any_difference_are_not_equal():
    """All 8 alike: 1 of 8 could well differ."""
    assert paired_difference([1.0] * 8, [1.0] * 8).interval().high > 0.2
    assert paired_difference([1.0] * 8, [1.0] * 8).equivalence(0.05) > 0.05
    assert paired_difference([1.0] * 2000, [1.0] * 2000).equivalence(0.05) < 0.001


def test_a_difference_of_sums_is_by_their_denominators():
    sizes = draw(6).integers(10, 90, 12).astype(float)
    second = draw(7).normal(3 * sizes, 5)
    first = second + draw(8).normal(0.25 * sizes, 3)
    interval = paired_difference(first, second, denominators=sizes).interval()
    assert interval.value == pytest.approx((first - second).sum() / sizes.sum())
    assert interval.low < 0.25 < interval.high
    shifted = paired_difference(first + 2 * sizes, second, denominators=sizes).interval()
    assert (shifted.low, shifted.high) == pytest.approx((interval.low + 2, interval.high + 2))


@pytest.mark.parametrize("names", [None, [str(item // 3) for item in range(30)]])
def test_differences_that_are_all_alike_are_not_certain(names):
    for scores in ([1.0] * 30, [0.5] * 30):
        interval = paired_difference(scores, [0.0] * 30, names).interval()
        assert interval.value == scores[0]
        assert 0 < interval.low < 0.96 * scores[0]
        assert scores[0] <= interval.high <= 1


@pytest.mark.parametrize("delta", [0.3, 0.8, 1.5])
def test_equivalence_is_two_one_sided_tests(delta):
    differences = draw(8).normal(0.1, 1, 12)
    above, below = flips(differences - delta), flips(differences + delta)
    expected = max((above <= above[0] + 1e-9).mean(), (below >= below[0] - 1e-9).mean())
    assert paired_difference(differences, [0.0] * 12).equivalence(delta) == pytest.approx(expected, rel=2e-3)


def test_a_difference_beyond_delta_is_not_equivalent():
    assert contested(30, 10).equivalence(0.1) == 1.0


def test_holms_correction_is_its_stepwise_procedure():
    for seed in range(30):
        p_values = (draw(seed).random(6) ** 3).tolist()
        adjusted = holm(p_values)
        for error in (0.01, 0.05, 0.2, 0.5):
            rejected = set()
            for rank, place in enumerate(sorted(range(6), key=p_values.__getitem__)):
                if p_values[place] > error / (6 - rank):
                    break
                rejected.add(place)
            assert {place for place in range(6) if adjusted[place] <= error} == rejected
    assert holm([]) == []


@pytest.mark.parametrize(("better", "worse"), [(0.3, 0.1), (0.5, 0.5), (0.2, 0.0), (0.05, 0.05)])
def test_the_power_of_mcnemars_test_is_the_sum_over_all_outcomes(better, worse):
    n = 25
    expected = 0.0
    for larger in range(n + 1):
        for smaller in range(n + 1 - larger):
            rest = n - larger - smaller
            mass = stats.multinomial.pmf([larger, smaller, rest], n, [better, worse, 1 - better - worse])
            if larger + smaller and stats.binomtest(larger, larger + smaller).pvalue <= 0.05:
                expected += mass
    assert mcnemar_power(n, better, worse) == pytest.approx(expected)


def test_mcnemars_test_never_errs_more_often_than_its_level():
    for n in (1, 5, 6, 10, 50, 200, 2000):
        for share in (0.01, 0.1, 0.5, 1.0):
            for level in (0.9, 0.95, 0.99):
                assert mcnemar_power(n, share / 2, share / 2, level) <= 1 - level + 1e-12


@pytest.mark.parametrize("effect", [0.0, 1.0, 2.8, 6.0, 60.0])
def test_the_power_of_a_mean_is_that_of_the_noncentral_t(effect):
    for freedom in (3, 20, 5000):
        half = stats.t.ppf(0.975, freedom)
        expected = stats.nct.sf(half, freedom, effect) + stats.nct.cdf(-half, freedom, effect)
        assert student_power(effect, freedom) == pytest.approx(expected if effect < 50 else 1.0, abs=1e-6)


def test_flips_err_as_often_as_they_have_signs_for():
    assert flip_error(5, 0.05) == 0
    assert flip_error(6, 0.05) == 2 / 64
    assert flip_error(50, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("units", [6, 9])
def test_the_power_of_flips_is_what_draws_have(units):
    draws = draw(4).normal(0.9, 1, (4000, units))
    signs = np.array(list(itertools.product([1, -1], repeat=units))).T
    sums = np.abs(draws @ signs)
    p_values = (sums >= np.abs(draws.sum(axis=1, keepdims=True)) - 1e-12).mean(axis=1)
    # Two standard errors of 4,000 draws.
    assert flip_power(0.9, units, 0.05) == pytest.approx((p_values <= 0.05).mean(), abs=0.016)
    assert flip_power(0.0, units, 0.05) == pytest.approx(flip_error(units, 0.05))
    assert flip_power(0.9, 5, 0.05) == 0


def test_the_items_that_would_tell_do_so_in_four_of_five_cases():
    pair = contested(30, 22, 400)
    needed = pair.items_needed()
    assert needed is not None
    assert mcnemar_power(needed, 30 / 400, 22 / 400) == pytest.approx(0.8, abs=0.01)
    generator = draw(10)
    found, runs = 0, 400
    for _ in range(runs):
        counts = generator.multinomial(needed, [30 / 400, 22 / 400, 348 / 400])
        found += stats.binomtest(counts[0], counts[0] + counts[1]).pvalue <= 0.05
    assert found / runs == pytest.approx(0.8, abs=0.05)


def test_the_clusters_that_would_tell_do_so_in_four_of_five_cases():
    generator = draw(11)
    names = [str(cluster) for cluster in range(30) for _ in range(2)]
    effects = generator.normal(0, 1, 30)
    effects = 0.3 + (effects - effects.mean()) / effects.std(ddof=1)
    pair = paired_difference(np.repeat(effects, 2), [0.0] * 60, names)
    needed = pair.items_needed()
    # 80 % power of a t test of a mean of 0.3 standard deviations takes 90 (Cohen 1988, table 2.4.1), of 2 items each.
    assert needed == pytest.approx(180, abs=4)


def test_items_that_would_show_equality():
    pair = paired_difference(draw(12).normal(0.0, 1, 100), [0.0] * 100)
    needed = pair.items_needed_within(0.2)
    assert needed is not None
    found, runs = 0, 300
    deviation = float(np.std(pair.differences, ddof=1))
    for seed in range(runs):
        sample = draw(1000 + seed).normal(pair.value, deviation, needed)
        half = stats.t.ppf(0.95, needed - 1) * stats.sem(sample)
        found += abs(sample.mean()) + half < 0.2
    assert found / runs == pytest.approx(0.8, abs=0.07)
    assert pair.items_needed_within(abs(pair.value)) is None


def test_models_that_agree_need_no_number_of_items():
    assert contested(7, 7).items_needed() is None
    assert contested(0, 0).items_needed() is None


def test_an_exchange_of_means_is_a_sign_flip():
    first, second = draw(13).normal(2, 1, 9), draw(14).normal(0, 1, 9)
    both = np.concatenate([first, second])
    pair = CorpusDifference(lambda places: float(both[places].mean()), 9)
    sums = np.abs(flips(first - second))
    assert pair.test.p_value == pytest.approx((sums >= sums[0] - 1e-9).mean())
    assert pair.value == pytest.approx(first.mean() - second.mean())
    expected = stats.ttest_rel(first, second).confidence_interval()
    interval = pair.interval()
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_exchanges_keep_clusters_together():
    """Two clusters have four exchanges, whatever the items: half of them give the difference again."""
    first, second = np.arange(10.0) + 5, np.arange(10.0)
    both = np.concatenate([first, second])
    names = ["a"] * 4 + ["b"] * 6
    assert CorpusDifference(lambda places: float(both[places].mean()), 10, names).test.p_value == 0.5
    assert CorpusDifference(lambda places: float(both[places].mean()), 10).test.p_value == 2 / 2**10


def test_an_exchange_of_ratios_errs_as_often_as_it_says():
    generator, errors, covered, runs = draw(15), 0, 0, 12
    for _ in range(runs):
        sizes = generator.integers(20, 200, 40).astype(float)
        nats = generator.normal(1.5 * sizes, 20)
        sums = np.concatenate([nats + generator.normal(0, 8, 40), nats + generator.normal(0, 8, 40)])
        denominators = np.concatenate([sizes, sizes])
        pair = CorpusDifference(
            lambda places, sums=sums, denominators=denominators: math.exp(
                sums[places].sum() / denominators[places].sum()
            ),
            40,
        )
        errors += pair.test.p_value <= 0.05
        interval = pair.interval()
        covered += interval.low <= 0 <= interval.high
    assert errors + covered == runs
    assert errors <= 2


def test_corpora_that_are_alike_are_not_told_apart():
    pair = CorpusDifference(lambda places: 0.5, 30, bounds=(-1, 1))
    assert pair.test.p_value == 1.0
    assert pair.interval().low < 0 < pair.interval().high


@pytest.mark.parametrize(
    "arguments",
    [([], []), ([1.0], [1.0, 2.0]), ([math.inf], [1.0]), ([1.0], [1.0], ["a", "b"]), ([1.0], [2.0], None, [0.0])],
)
def test_scores_that_are_no_pairs_are_refused(arguments):
    with pytest.raises(ValueError, match=r"."):
        paired_difference(*arguments)
