"""Confidence sequences, looks at one set of items, the noise of training, and verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from llmscale.evaluate.statistics import (
    confidence_sequence,
    judge,
    look_level,
    mean_interval,
    paired_confidence_sequence,
    paired_difference,
    training_noise,
)


def draw(seed):
    return np.random.default_rng(seed)


def fortunes(values, mean, error):
    """Of bets on more and on less than a mean, value by value: Waudby-Smith and Ramdas 2024, equations 24 to 26."""
    more = less = 1.0
    total, squares = 0.5, 0.25
    variance = 0.25
    for count, value in enumerate(values, start=1):
        bet = math.sqrt(2 * math.log(2 / error) / (variance * count * math.log(1 + count)))
        more *= 1 + min(bet, 0.5 / mean) * (value - mean)
        less *= 1 - min(bet, 0.5 / (1 - mean)) * (value - mean)
        total += value
        squares += (value - total / (count + 1)) ** 2
        variance = squares / (count + 1)
    return max(more, less) / 2


@pytest.mark.parametrize("seed", range(4))
def test_a_confidence_sequence_holds_the_means_whose_bets_stay_poor(seed):
    values = draw(seed).beta(2, 1, 60)
    for count in (1, 7, 60):
        (interval,) = confidence_sequence(values, [count], level=0.9)
        for mean in np.linspace(0.01, 0.99, 99):
            poor = fortunes(values[:count], mean, 0.1) < 10
            assert poor == (interval.low < mean < interval.high), (count, mean)


def test_a_confidence_sequence_narrows_to_the_mean():
    values = (draw(5).random(4000) < 0.8).astype(float)
    first, middle, last = confidence_sequence(values, [10, 400, 4000])
    assert last.high - last.low < middle.high - middle.low < first.high - first.low
    assert last.low < 0.8 < last.high
    assert last.high - last.low < 0.08
    assert last.value == pytest.approx(values.mean())
    # A price for looking: wider than an interval of one look, but not by much.
    once = mean_interval(values)
    assert 1 < (last.high - last.low) / (once.high - once.low) < 2.6


def test_bounds_only_scale_a_confidence_sequence():
    values = draw(6).random(50)
    (unit,), (wide,) = confidence_sequence(values, [50]), confidence_sequence(10 * values - 3, [50], bounds=(-3, 7))
    assert (wide.low, wide.high) == pytest.approx((10 * unit.low - 3, 10 * unit.high - 3))


def test_a_paired_sequence_finds_a_difference_and_its_sign():
    scores, others = (draw(7).random((2, 1500)) < [[0.8], [0.6]]).astype(float)
    interval = paired_confidence_sequence(scores, others, [1500])[0]
    assert 0 < interval.low < 0.2 < interval.high
    turned = paired_confidence_sequence(others, scores, [1500])[0]
    assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low))


def test_sequences_seldom_leave_the_truth_however_often_one_looks():
    left, runs = 0, 100
    for seed in range(runs):
        values = (draw(seed).random(200) < 0.3).astype(float)
        sequence = confidence_sequence(values, range(10, 201, 5))
        left += any(not interval.low <= 0.3 <= interval.high for interval in sequence)
    assert left <= 0.05 * runs


@pytest.mark.parametrize("arguments", [([1.5],), ([math.nan],), ([0.5], [2]), ([0.5], [0])])
def test_what_is_no_sequence_is_refused(arguments):
    with pytest.raises(ValueError, match=r"."):
        confidence_sequence(*arguments)


def test_looks_share_what_may_go_wrong():
    assert sum(1 - look_level(look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    assert sum(1 - look_level(look, 0.9, looks=40) for look in range(1, 41)) == pytest.approx(0.1)
    for look, looks in ((0, None), (41, 40)):
        with pytest.raises(ValueError, match="look"):
            look_level(look, looks=looks)


def test_the_noise_of_seeds_is_welchs():
    first, second = [0.61, 0.64, 0.6, 0.66], [0.52, 0.5, 0.58]
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    noise = training_noise(first, second, "seeds")
    assert (noise.low, noise.high) == pytest.approx((expected.low, expected.high))


def test_the_noise_of_checkpoints_is_that_of_one_checkpoint_each():
    first, second = [0.6, 0.62, 0.61, 0.65], [0.5, 0.53, 0.49, 0.52]
    noise = training_noise(first, second, "checkpoints")
    deviation = math.sqrt(np.var(first, ddof=1) + np.var(second, ddof=1))
    assert noise.value == pytest.approx(0.65 - 0.52)
    assert noise.standard_error == pytest.approx(deviation)
    assert noise.high - noise.low > 2 * 1.96 * deviation


def test_a_model_with_one_score_takes_the_spread_of_the_other():
    noise = training_noise([0.7], [0.5, 0.52, 0.54], "seeds")
    # The deviation is 0.02, of one score and of a mean of three; 2 degrees of freedom.
    half = stats.t.ppf(0.975, 2) * 0.02 * math.sqrt(1 + 1 / 3)
    assert (noise.low, noise.high) == pytest.approx((0.18 - half, 0.18 + half))
    assert training_noise([0.7], [0.5], "seeds") is None


def pair(better, worse, n=1000):
    return paired_difference(
        [1.0] * better + [0.0] * (n - better), [0.0] * better + [1.0] * worse + [0.0] * (n - better - worse)
    )


def words(verdicts):
    return [verdict.word for verdict in verdicts]


def test_a_verdict_is_by_the_metrics_direction():
    assert words(judge([pair(60, 20), pair(60, 20), pair(20, 60)], [True, False, True])) == ["better", "worse", "worse"]


def test_many_comparisons_ask_for_more():
    """11 to 1 has p = 0.006: enough alone and among 7, not among 10."""
    close = pair(11, 1)
    assert words(judge([close], [True])) == ["better"]
    assert judge([close] + [pair(5, 5)] * 6, [True] * 7)[0].word == "better"
    several = judge([close] + [pair(5, 5)] * 9, [True] * 10)[0]
    assert several.word == "cannot tell"
    assert several.p_value == pytest.approx(10 * close.test.p_value)


def test_what_lies_within_delta_is_equal_even_if_it_is_not_0():
    difference = pair(60, 20)
    assert difference.interval().low > 0
    assert judge([difference], [True], deltas=[0.08])[0].sentence == "equal within 0.08"
    assert judge([difference], [True], deltas=[0.04])[0].word == "better"


def test_it_says_how_many_more_items_would_tell():
    difference = pair(30, 22)
    verdict = judge([difference], [True])[0]
    assert verdict.word == "cannot tell"
    assert verdict.more_items == difference.items_needed() - 1000
    rounded = int(
        verdict.sentence.removeprefix("cannot tell: about ").removesuffix(" more items would").replace(",", "")
    )
    assert verdict.more_items <= rounded < 1.1 * verdict.more_items
    assert len(str(rounded).rstrip("0")) <= 2
    among = judge([difference] * 20, [True] * 20)[0]
    assert among.more_items > verdict.more_items


def test_equality_may_take_fewer_items_than_a_difference():
    difference = pair(31, 30)
    alone, within = judge([difference], [True])[0], judge([difference], [True], deltas=[0.012])[0]
    assert within.word == "cannot tell"
    assert within.more_items < alone.more_items / 100


def test_no_difference_at_all_needs_a_delta():
    assert "no difference so far; --delta" in judge([pair(7, 7)], [True])[0].sentence
    assert judge([pair(7, 7)], [True], deltas=[0.001])[0].more_items > 0


def test_a_difference_must_be_above_the_noise_of_training_too():
    loud, quiet = training_noise([0.5, 0.7], [0.4, 0.6], "seeds"), training_noise([0.6, 0.61], [0.56, 0.57], "seeds")
    verdicts = judge([pair(60, 20)] * 2, [True] * 2, noises=[loud, quiet])
    assert words(verdicts) == ["cannot tell", "better"]
    assert "within that of training" in verdicts[0].sentence
    equal = judge([pair(12, 12)], [True], deltas=[0.05], noises=[loud])[0]
    assert equal.word == "cannot tell"
    assert "noise of training is more" in equal.sentence
