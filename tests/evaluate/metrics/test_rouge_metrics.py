"""ROUGE by hand and beside rouge-score; its stemmer by Porter's examples and beside NLTK."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmscale.evaluate.metrics import per_item
from llmscale.evaluate.metrics.porter import stem
from llmscale.evaluate.metrics.rouge import tokens_of
from tests.evaluate.metrics.records import written

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SUFFIXES = (
    "s sses ies ied eed ed ing y ational tional enci anci izer bli abli alli entli eli ousli ization ation "
    "ator alism iveness fulness ousness aliti iviti biliti fulli logi icate ative alize iciti ical ful ness al "
    "ance ence er ic able ible ant ement ment ent ion ou ism ate iti ous ive ize e ll "
)


@pytest.mark.parametrize(
    ("name", "text", "reference", "value"),
    [
        ("rouge1", "police kill the gunman", "police killed the gunman", 0.75),
        ("rouge1:stem=true", "police kill the gunman", "police killed the gunman", 1),
        ("rouge2", "police kill the gunman", "police killed the gunman", 1 / 3),
        # Lin 2004, section 3.1: a common subsequence of 3 of 4, and one of 2.
        ("rougeL", "police kill the gunman", "police killed the gunman", 0.75),
        ("rougeL", "the gunman kill police", "police killed the gunman", 0.5),
        # Lin 2004, section 3.2: w1 w2 and w1 w3 w5 together 4 of 5 words of the reference, against 10 written.
        ("rougeLsum", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * 0.4 * 0.8 / 1.2),
        ("rouge1", "a a a", "a b", 2 * (1 / 3) * 0.5 / (1 / 3 + 0.5)),
        ("rouge1", "Café-noir, 5%!", "caf noir 5", 1),  # ASCII letters and digits alone
        ("rouge2", "one", "one", 0),
        ("rouge1", "", "a", 0),
        ("rougeL", "a", "", 0),
        ("rougeLsum", "\n\n", "a", 0),
        ("rouge1", "猫坐在垫子上", "猫在垫子上", 0),
        ("rouge1:language=zh", "猫坐在垫子上", "猫在垫子上", 10 / 11),
        ("rouge2:language=zh", "猫坐在垫子上", "猫在垫子上", 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4)),
        ("rougeL:language=zh", "垫子上坐猫", "猫坐在垫子上", 6 / 11),
        ("rougeLsum:language=zh", "GPT模型。\n猫", "gpt模型，猫！", 1),
    ],
)
def test_by_hand(name, text, reference, value):
    assert per_item(name, written(text, reference)) == pytest.approx(value)


def test_chinese_is_taken_by_characters_and_other_words_whole():
    options = {"language": "zh", "stem": False}
    assert tokens_of("GPT-4在2024年，very good。㐀𠀀", options) == [
        *("gpt", "4", "在", "2024", "年", "very", "good", "㐀", "𠀀")
    ]


def test_the_best_reference_counts():
    assert per_item("rouge1", written("a b", "c", "a b", "a")) == 1


@given(st.lists(st.sampled_from("ab\n "), max_size=12), st.lists(st.sampled_from("ab\n "), max_size=12))
def test_symmetric_in_its_two_texts(left, right):
    left, right = " ".join(left), " ".join(right)
    for name in ("rouge1", "rouge2", "rougeL"):
        forth, back = per_item(name, written(left, right)), per_item(name, written(right, left))
        assert forth == pytest.approx(back)
        assert 0 <= forth <= 1


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        *[("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("agreed", "agre"), ("plastered", "plaster")],
        *[("motoring", "motor"), ("sing", "sing"), ("conflated", "conflat"), ("hopping", "hop"), ("falling", "fall")],
        *[("hissing", "hiss"), ("filing", "file"), ("happy", "happi"), ("relational", "relat"), ("digitizer", "digit")],
        *[
            ("radically", "radic"),
            ("vileli", "vile"),
            ("operator", "oper"),
            ("formality", "formal"),
            ("goodness", "good"),
        ],
        *[("electrical", "electr"), ("revival", "reviv"), ("adoption", "adopt"), ("replacement", "replac")],
        *[("probate", "probat"), ("rate", "rate"), ("cease", "ceas"), ("controll", "control"), ("roll", "roll")],
        # Where NLTK differs from the paper.
        *[("dies", "die"), ("died", "die"), ("spied", "spi"), ("enjoy", "enjoy"), ("by", "by"), ("skies", "sky")],
    ],
)
def test_stems_of_porters_paper(word, stemmed):
    assert stem(word) == stemmed


@pytest.mark.slow
def test_stems_are_nltks():
    stemmer = pytest.importorskip("nltk.stem.porter").PorterStemmer()
    rng = random.Random(0)
    for _ in range(40_000):
        letters = "".join(rng.choice("aeioybcdlstzwxmr1") for _ in range(rng.randint(0, 5)))
        word = letters + "".join(rng.choice(SUFFIXES.split()) for _ in range(rng.randint(1, 3)))
        assert stem(word) == stemmer.stem(word), word


@pytest.mark.slow
@pytest.mark.parametrize("stemming", [False, True])
def test_english_is_rouge_scores(stemming):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(NAMES, use_stemmer=stemming)
    text = "the cats were running, running quickly! Café U.S. 3.5 relational ran\n cat sat the\n a_b --"
    _same(scorer, text.split(" "), " ", {"stem": stemming})


@pytest.mark.slow
def test_chinese_is_rouge_scores_with_these_tokens():
    class Characters:
        def tokenize(self, text):
            return tokens_of(text, {"language": "zh", "stem": False})

    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(NAMES, tokenizer=Characters())
    _same(scorer, [*"猫坐在垫子上，。\n的", "GPT4"], "", {"language": "zh"})


def _same(scorer, words, joint, options):
    """Random texts of few words, whose longest common subsequences are many."""
    rng = random.Random(5)
    for _ in range(400):
        text, *references = (
            joint.join(rng.choice(words) for _ in range(rng.randint(0, 25))) for _ in range(rng.randint(2, 4))
        )
        expected = scorer.score_multi(references, text)
        for name in NAMES:
            value = per_item(name, written(text, *references), options)
            assert value == pytest.approx(expected[name].fmeasure, abs=1e-12), (name, text, references)
