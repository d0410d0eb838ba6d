"""Smoothing, thinning and limits against what they promise."""

import statistics

import numpy as np
import pytest

from llmscale.report.curves import settled_limits, smooth, thin


def test_smooth_is_the_median_of_a_window_that_shrinks_at_the_start():
    draw = np.random.default_rng(0)
    y = draw.normal(size=300)
    x = np.arange(300.0) * 10
    smooth_x, smooth_y = smooth(x, y)
    for index in range(300):
        half = min(3, index)
        window = list(y[index - half : min(300, index + half + 1)])
        assert smooth_y[index] == pytest.approx(statistics.median(window))
    assert np.array_equal(smooth_x, x)


def test_smooth_leaves_short_curves_alone_and_bounds_long_ones():
    x, y = np.arange(99.0), np.random.default_rng(1).normal(size=99)
    assert smooth(x, y)[1] is y
    long_x, long_y = smooth(np.arange(50_000.0), np.ones(50_000))
    assert len(long_x) == len(long_y) == 1000
    assert long_x[0] == 0
    assert long_x[-1] == 49_999


def test_smooth_keeps_gaps_where_values_are_not_finite_and_ignores_them_elsewhere():
    y = np.ones(200)
    y[50], y[51], y[120] = np.nan, np.inf, 1e9
    _, shown = smooth(np.arange(200.0), y)
    assert np.isnan(shown[[50, 51]]).all()
    assert (np.delete(shown, [50, 51]) == 1).all()  # the spike neither bends nor widens the curve


def test_thin_keeps_ends_and_extremes():
    y = np.random.default_rng(2).normal(size=30_000)
    y[12_345], y[20_001] = 99, -99
    y[29_000:29_500] = np.nan
    x, shown = thin(np.arange(30_000.0), y, points=1000)
    assert len(x) <= 1002
    assert {0.0, 29_999.0, 12_345.0, 20_001.0} <= set(x)
    assert np.array_equal(shown, y[x.astype(int)], equal_nan=True)
    assert np.isnan(shown).any()  # the gap stays a gap


def test_limits_leave_out_the_first_fall_and_a_rare_spike():
    x = np.arange(1000.0)
    y = 3 + 6 * np.exp(-x / 10)
    y[500] = 400
    low, high = settled_limits([(x, y)])
    settled = y[(x >= 0.05 * 999) & (x != 500)]
    assert low < y.min()
    assert settled.max() - 0.1 < high < 4


def test_limits_show_everything_when_the_fall_is_small():
    x = np.arange(100.0)
    y = np.linspace(4, 3, 100)
    low, high = settled_limits([(x, y)])
    assert low < 3
    assert high > 4


@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
def test_limits_of_one_point_surround_it(value):
    low, high = settled_limits([(np.array([5.0]), np.array([value]))])
    assert low < value < high


def test_limits_of_nothing_finite():
    assert settled_limits([(np.arange(3.0), np.array([np.nan, np.inf, -np.inf]))]) is None
    assert settled_limits([]) is None
