"""Perplexities by hand and beside lm-eval's aggregations."""

import math
import random

import pytest

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics import figure_of, per_item
from tests.evaluate.metrics.records import answer, random_records


def text(nats, tokens, size, **further):
    return Record(0, "", answers=[answer([-nats / tokens] * tokens, size)], **further)


TWO = [text(6.0, 4, 10, scored_words=2), text(12.0, 5, 20, scored_bytes=25, scored_words=4)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_perplexity", math.exp(18 / 9)),
        ("word_perplexity", math.exp(18 / 6)),
        ("byte_perplexity", math.exp(18 / 35)),
        ("bits_per_byte", 18 / 35 / math.log(2)),
        ("target_perplexity", math.exp(9)),
    ],
)
def test_sums_of_all_records_over_units_of_all_records(name, value):
    figure = figure_of(name, TWO)
    assert figure.value == pytest.approx(value)
    assert figure.low <= figure.value <= figure.high
    assert not figure.higher_is_better


def test_a_record_alone():
    assert per_item("token_perplexity", TWO[0]) == pytest.approx(math.exp(1.5))
    assert per_item("bits_per_byte", TWO[1]) == pytest.approx(12 / 25 / math.log(2))


def test_groups_are_domains():
    domains = [text(6.0, 4, 10, group="news"), text(2.0, 4, 10, group="news"), text(9.0, 3, 10, group="code")]
    figure = figure_of("token_perplexity", domains)
    assert figure.by_group == pytest.approx({"code": math.exp(3), "news": math.exp(1)})
    assert figure.macro.value == pytest.approx((math.exp(3) + math.exp(1)) / 2)


def test_the_interval_covers_the_truth():
    """Nats a byte of 1 on average: 95 % intervals of 400 sets of 30 texts, 3 standard errors about 95 %."""
    rng = random.Random(5)
    covered = 0
    for _ in range(400):
        sizes = [rng.randint(20, 60) for _ in range(30)]
        figure = figure_of("bits_per_byte", [text(rng.gauss(size, math.sqrt(size)), 5, size) for size in sizes])
        covered += figure.low <= 1 / math.log(2) <= figure.high
    assert 0.95 - 0.033 < covered / 400 < 0.95 + 0.033


def test_what_is_beyond_floating_point_is_infinite():
    assert figure_of("token_perplexity", [text(5000.0, 1, 3)]).value == math.inf


@pytest.mark.slow
def test_beside_lm_eval():
    oracle = pytest.importorskip("lm_eval.api.metrics")
    records = random_records("perplexity", 30, seed=9)
    totals = [record.answers[0].total for record in records]
    words = list(zip(totals, [record.scored_words for record in records], strict=True))
    sizes = list(zip(totals, [record.scored_bytes for record in records], strict=True))
    expected = {
        "word_perplexity": oracle.weighted_perplexity(words),
        "byte_perplexity": oracle.weighted_perplexity(sizes),
        "bits_per_byte": oracle.bits_per_byte(sizes),
        "target_perplexity": oracle.perplexity(totals),
    }
    assert {name: figure_of(name, records).value for name in expected} == pytest.approx(expected)
