"""Calibration error and reliability tables by hand, and beside the definition written out."""

import math

import pytest

from llmscale.evaluate.metrics import figure_of
from llmscale.evaluate.metrics.calibration import reliability_table
from tests.evaluate.metrics.records import choice, labelled, random_records

FOUR = [labelled([0.9, 0.1], 0), labelled([0.8, 0.2], 1), labelled([0.35, 0.65], 1), labelled([0.62, 0.38], 1)]


def test_by_hand():
    # Bins (0.6, 0.7]: mean confidence 0.635, 1 of 2 right; (0.7, 0.8]: 0.8, none; (0.8, 0.9]: 0.9, all.
    error = (2 * abs(0.635 - 0.5) + 0.8 + 0.1) / 4
    assert figure_of("expected_calibration_error", FOUR).value == pytest.approx(error)
    # One bin: mean confidence 0.7425, half right.
    assert figure_of("expected_calibration_error:bins=1", FOUR).value == pytest.approx(0.2425)
    # Two of equal number: 0.62 and 0.65, one right; 0.8 and 0.9, one right.
    by_count = figure_of("expected_calibration_error:bins=2:binning=count", FOUR)
    assert by_count.value == pytest.approx((abs(1.27 - 1) + abs(1.7 - 1)) / 4)
    assert by_count.signature == "expected_calibration_error|bins:2|binning:count"


def test_the_table_has_the_bins_that_hold_items():
    table = reliability_table(FOUR)
    assert [(row.low, row.high, row.count) for row in table] == [
        (pytest.approx(0.6), pytest.approx(0.7), 2),
        (pytest.approx(0.7), pytest.approx(0.8), 1),
        (pytest.approx(0.8), pytest.approx(0.9), 1),
    ]
    assert [(row.confidence, row.accuracy) for row in table] == [(pytest.approx(0.635), 0.5), (0.8, 0.0), (0.9, 1.0)]
    by_count = reliability_table(FOUR, bins=2, binning="count")
    assert [(row.low, row.high, row.count) for row in by_count] == [(0.62, 0.65, 2), (0.8, 0.9, 2)]


def test_certainty_is_in_the_last_bin_and_the_table_adds_up_to_the_figure():
    assert [row.high for row in reliability_table([labelled([1.0, 0.0], 0)])] == [1.0]
    records = random_records("choice", 60, seed=7)
    for binning in ("width", "count"):
        table = reliability_table(records, 7, binning)
        error = sum(row.count * abs(row.confidence - row.accuracy) for row in table) / len(records)
        figure = figure_of("expected_calibration_error", records, {"bins": 7, "binning": binning})
        assert figure.value == pytest.approx(error)
        assert sum(row.count for row in table) == len(records)


def test_beside_the_definition():
    records = random_records("choice", 80, seed=8)
    bins: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        weights = [math.exp(each.total) for each in record.answers]
        confidence = max(weights) / sum(weights)
        right = weights.index(max(weights)) == record.gold[0]
        bins.setdefault(math.ceil(confidence * 15), []).append((confidence, right))
    gaps = [abs(sum(c for c, _ in within) - sum(r for _, r in within)) for within in bins.values()]
    figure = figure_of("expected_calibration_error:bins=15", records)
    assert figure.value == pytest.approx(sum(gaps) / len(records))


def test_a_model_that_knows_what_it_does_not_know_has_no_error():
    half = [choice([0.0, 0.0], gold=[0]), choice([0.0, 0.0], gold=[1])]
    assert figure_of("expected_calibration_error", half).value == 0
