"""Figures of confusion matrices beside scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

from data_pipeline.base.errors import UserError
from llmscale.evaluate.metrics import figure_of, per_item
from tests.evaluate.metrics.records import choice, labelled


def records_of(pairs, labels):
    """A record for each right and predicted label."""
    return [
        labelled([0.5 if label == predicted else 0.1 for label in range(labels)], right) for right, predicted in pairs
    ]


@pytest.mark.filterwarnings("ignore:A single label was found")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_equal_to_scikit_learn(pairs):
    records = records_of(pairs, 4)
    right, predicted = zip(*pairs, strict=True)
    expected = {
        "matthews": matthews_corrcoef(right, predicted),
        "macro_f1": f1_score(right, predicted, average="macro", zero_division=0),
        "micro_f1": f1_score(right, predicted, average="micro"),
        "accuracy": np.mean(np.array(right) == np.array(predicted)),
    }
    assert {name: figure_of(name, records).value for name in expected} == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30), st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_binary_f1_is_scikit_learns(pairs, positive):
    right, predicted = zip(*pairs, strict=True)
    figure = figure_of("binary_f1", records_of(pairs, 2), {"positive": positive})
    assert figure.value == pytest.approx(f1_score(right, predicted, pos_label=positive, zero_division=0), abs=1e-12)


def test_choices_have_a_confusion_too():
    items = [choice([-1.0, -2.0], gold=[0]), choice([-1.0, -2.0], gold=[1]), choice([-3.0, -2.0], gold=[1])]
    assert figure_of("matthews", items).value == pytest.approx(matthews_corrcoef([0, 1, 1], [0, 0, 1]))


def test_many_items_at_once():
    """Counts beyond 32 bits' square."""
    pairs = [(0, 0), (1, 1), (1, 0)] * 10_000
    right, predicted = zip(*pairs, strict=True)
    assert figure_of("matthews", records_of(pairs, 2)).value == pytest.approx(matthews_corrcoef(right, predicted))


def test_one_item_has_no_figure_of_its_own_and_a_label_must_exist():
    assert per_item("matthews", labelled([0.5, 0.5], 0)) is None
    with pytest.raises(UserError, match="positive of metric binary_f1 is 2, and items have 2 labels"):
        figure_of("binary_f1:positive=2", [labelled([0.5, 0.5], 0)])
