"""Metrics of choices, pairs and likelihoods by hand and beside lm-eval's own functions."""

import math
import random

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics import figure_of, per_item
from tests.evaluate.metrics.records import answer, choice, labelled, random_records


def lengths(*answers, gold=0, **further):
    """An item with answers of these totals, numbers of tokens, characters and bytes."""
    made = [answer([total / tokens] * tokens, characters, size) for total, tokens, characters, size in answers]
    return Record(0, "", answers=made, gold=[gold], **further)


# Answer 0 is best in total; 1 a token; 2 a character with its leading space; 3 a character without; 4 a byte.
ITEM = [(-6.0, 2, 6, 6), (-7.0, 4, 7, 7), (-9.0, 4, 12, 12), (-10.0, 4, 13, 13), (-13.0, 4, 14, 42)]


@pytest.mark.parametrize(
    ("name", "right"),
    [("accuracy", 0), ("accuracy_per_token", 1), ("accuracy_per_character", 2), ("accuracy_per_byte", 4)],
)
def test_accuracy_takes_the_best_by_its_length(name, right):
    assert [per_item(name, lengths(*ITEM, gold=gold)) for gold in range(5)] == [float(g == right) for g in range(5)]


def test_the_space_before_an_answer_is_left_out_of_lm_evals_lengths():
    item = [(-4.0, 1, 3, 3), (-8.1, 1, 6, 6)]  # by length -1.33 and -1.35, by length less 1 -2 and -1.62
    assert per_item("accuracy_per_character", lengths(*item)) == 1
    assert per_item("acc_norm", lengths(*item)) == 0
    assert per_item("acc_bytes", lengths(*item)) == 0
    assert per_item("acc_norm:delimiter=0", lengths(*item)) == 1


def test_answers_that_tie_share_the_item():
    assert per_item("accuracy", choice([-1.0, -1.0, -2.0])) == 0.5
    assert per_item("accuracy", choice([-1.0, -1.0, -1.0], gold=[0, 2])) == pytest.approx(2 / 3)
    assert per_item("accuracy", choice([-2.0, -1.0, -1.0])) == 0
    assert per_item("accuracy", labelled([0.25] * 4, 1)) == 0.25
    assert per_item("pair_accuracy", choice([-1.0, -1.0])) == 0.5


def test_any_of_several_right_answers_counts():
    assert per_item("accuracy", choice([-1.0, -3.0, -2.0], gold=[0, 2])) == 1
    assert per_item("soft_accuracy", choice([math.log(0.5), math.log(0.3), math.log(0.2)], gold=[0, 2])) == (
        pytest.approx(0.7)
    )
    assert per_item("brier_score", labelled([0.5, 0.3, 0.2], 0)) == pytest.approx(0.25 + 0.09 + 0.04)
    both = Record(0, "", probabilities=[0.5, 0.3, 0.2], gold=[0, 2])
    assert per_item("brier_score", both) == pytest.approx(0.09 + 0.09)


def test_the_neutral_context_is_taken_off():
    item = {"gold": [1], "neutral": [-0.5, -4.0]}
    assert per_item("accuracy", choice([-1.0, -2.0], **item)) == 0
    assert per_item("accuracy_pmi", choice([-1.0, -2.0], **item)) == 1


def test_the_answers_share_all_probability_however_small():
    far = choice([-2000.0, -2000.0 + math.log(3)], gold=[1])
    assert per_item("soft_accuracy", far) == pytest.approx(0.75)
    assert per_item("soft_accuracy", choice([-5.0, -math.inf])) == 1
    # Probabilities of a head that were rounded need not add up to 1.
    assert per_item("soft_accuracy", labelled([0.3, 0.3], 0)) == pytest.approx(0.5)


def test_brier_is_scikit_learns():
    records = random_records("classify", 40, seed=2)
    masses = np.array([record.probabilities for record in records])
    expected = brier_score_loss([record.gold[0] for record in records], masses, labels=[0, 1, 2], scale_by_half=False)
    assert figure_of("brier_score", records).value == pytest.approx(expected, rel=1e-12)


def test_bits_per_byte_of_the_most_probable_right_answer():
    item = Record(0, "", answers=[answer([-2.0, -2.0], 8), answer([-1.0], 1), answer([-9.0], 90)], gold=[0, 1])
    assert per_item("answer_bits_per_byte", item) == pytest.approx(0.5 / math.log(2))


def test_a_target_is_right_where_every_token_is_greedy():
    two = answer([-1.0, -1.0])
    right = Record(0, "", answers=[two])
    wrong = Record(
        1,
        "",
        answers=[
            answer([-1.0]),
        ][:1],
    )
    wrong.answers[0].greedy[0] = False
    assert [per_item("greedy_accuracy", record) for record in (right, wrong)] == [1, 0]
    two.greedy[1] = False
    assert per_item("greedy_accuracy", right) == 0


def test_pairs_by_total_and_by_token():
    # The good text is longer and less probable, and more probable a token.
    item = lengths((-6.0, 3, 9, 9), (-5.0, 2, 8, 8))
    assert per_item("pair_accuracy", item) == 0
    assert per_item("pair_accuracy_per_token", item) == 1


@pytest.mark.slow
def test_choices_are_scored_as_lm_eval_does():
    task = pytest.importorskip("lm_eval.api.task").MultipleChoiceTask
    rng = random.Random(4)
    for _ in range(300):
        texts = ["".join(rng.choice("ab猫é") for _ in range(rng.randint(1, 9))) for _ in range(4)]
        totals, gold = [-rng.expovariate(0.1) for _ in texts], rng.randrange(4)
        expected = task.process_results(None, {"gold": gold, "choices": texts}, [(total, False) for total in totals])
        answers = [
            answer([total], len(text) + 1, len(text.encode()) + 1) for total, text in zip(totals, texts, strict=True)
        ]
        record = Record(0, "", answers=answers, gold=[gold])
        assert per_item("accuracy", record) == expected["acc"]
        assert per_item("acc_norm", record) == expected["acc_norm"]
        by_bytes = np.argmax([total / len(text.encode()) for total, text in zip(totals, texts, strict=True)])
        assert per_item("acc_bytes", record) == (by_bytes == gold)


@pytest.mark.slow
def test_brier_is_lm_evals():
    oracle = pytest.importorskip("lm_eval.api.metrics").brier_score
    records = random_records("choice", 50, seed=6)
    totals = np.array([[each.total for each in record.answers] for record in records])
    masses = np.exp(totals) / np.exp(totals).sum(axis=1, keepdims=True)
    expected = oracle([(record.gold[0], mass) for record, mass in zip(records, masses, strict=True)])
    assert figure_of("brier_score", records).value == pytest.approx(expected, rel=1e-9)
