"""Exact match and F1 of answers by tables worked out by hand from the published rules, and beside NLTK's words."""

import random

import pytest

from llmscale.evaluate.metrics import figure_of, per_item
from llmscale.evaluate.metrics.cmrc import units
from tests.evaluate.metrics.records import written


@pytest.mark.parametrize(
    ("text", "reference", "exact", "f1"),
    [
        ("the Denver Broncos!", "Denver Broncos", 1, 1),
        ("Denver", "The Denver Broncos", 0, 2 / 3),
        ("a cat sat on a mat", "cat on the mat", 0, 6 / 7),  # cat sat on mat, cat on mat
        ("cat cat dog", "cat dog dog", 0, 2 / 3),  # as bags: cat once, dog once
        ("U.S.", "us", 1, 1),
        ("thé", "the", 0, 0),  # an article only where it is a whole word
        ("theory", "the theory", 1, 1),
        ("well-known", "well known", 0, 0),  # punctuation goes without leaving a space
        ("", "", 1, 1),
        ("the", "a", 1, 1),
        ("", "cat", 0, 0),
        ("x", "", 0, 0),
        ("  two\n words\t", "two words", 1, 1),
        ("“quoted”", "quoted", 0, 0),  # only ASCII punctuation
    ],
)
def test_squads_rule(text, reference, exact, f1):
    assert per_item("exact_match", written(text, reference)) == exact
    assert per_item("f1", written(text, reference)) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "reference", "exact", "f1"),
    [
        ("北京市。", "北京市", 1, 1),
        ("北京", "北京市", 0, 0.8),
        ("在北京大学", "北京的大学", 0, 0.4),  # the longest run is 北京 or 大学, of 5 and 5
        ("1998年", "1998年5月", 0, 2 * 1 * 0.5 / 1.5),  # 1998, 年 of 1998, 年, 5, 月
        ("ABC公司", "abc公司", 1, 1),
        ("《红楼梦》", "红楼梦", 1, 1),
        ("3.5米", "3.5 米", 0, 1),  # spaces count for exact match alone
        ("", "北京", 0, 0),
        ("", "", 1, 0),
        ("New York市", "york市", 0, 0.8),
    ],
)
def test_cmrcs_rule(text, reference, exact, f1):
    assert per_item("exact_match:language=zh", written(text, reference)) == exact
    assert per_item("f1:language=zh", written(text, reference)) == pytest.approx(f1)


def test_the_best_reference_counts_and_samples_are_averaged():
    assert per_item("f1", written("big cat", "dog", "cat", "big red cat")) == pytest.approx(0.8)
    assert per_item("exact_match", written(["cat", "dog", "cat", "cow"], "cat")) == 0.5
    assert figure_of("exact_match", [written("cat", "dog", "cat"), written("cow", "cat")]).value == 0.5


@pytest.mark.slow
def test_words_among_chinese_are_nltks_where_it_has_no_rule_of_its_own():
    tokenizer = pytest.importorskip("nltk.tokenize").NLTKWordTokenizer()
    rng = random.Random(1)
    vocabulary = "GPT 3.5 1,000 model x2 (a) 7% 50％ a,b e.g. etc. .. ... end. ? ! ; [1] $5 – & ℃ v…w"
    for _ in range(1000):
        text = rng.choice(["", " "]).join(rng.choice(vocabulary.split()) for _ in range(rng.randint(1, 8)))
        assert units(f"猫{text}猫") == ["猫", *tokenizer.tokenize(text.lower()), "猫"]
