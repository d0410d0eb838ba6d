"""Numbers, texts that contain an answer, and samples: by tables, by brute force, and beside lm-eval."""

import itertools
import random

import pytest

from data_pipeline.base.errors import UserError
from llmscale.evaluate.metrics import figure_of, per_item
from llmscale.evaluate.metrics.pass_at_k import unbiased
from tests.evaluate.metrics.records import written


@pytest.mark.parametrize(
    ("text", "reference", "strict", "flexible"),
    [
        ("He has 9 * 2 = 18.\n#### 18", "Janet sells 9 eggs.\n#### 18", 1, 1),
        ("The answer is 18.", "#### 18", 0, 1),
        ("#### 1,800", "1800", 1, 1),
        ("It costs $18.00", "18", 0, 1),
        ("#### 18.0 dollars", "18", 1, 1),
        ("#### 7\nNo, 18", "18", 0, 1),
        ("#### -5", "-5", 1, 1),
        ("#### 18 or #### 19", "18", 1, 0),
        ("no number", "18", 0, 0),
        ("", "18", 0, 0),
        ("#### ...", "18", 0, 0),
        ("#### NaN", "18", 0, 0),
    ],
)
def test_the_number_at_the_end(text, reference, strict, flexible):
    assert per_item("numeric_match", written(text, reference)) == strict
    assert per_item("numeric_match_flexible", written(text, reference)) == flexible


def test_numbers_as_texts():
    assert per_item("numeric_match", written("#### 18.0", "18")) == 1
    assert per_item("numeric_match:compare=text", written("#### 18.0", "18")) == 0


@pytest.mark.slow
def test_numbers_as_texts_are_lm_evals():
    filters = pytest.importorskip("lm_eval.filters.extraction")
    exact = pytest.importorskip("lm_eval.api.metrics").exact_match_hf_evaluate
    rules = {
        "numeric_match": filters.RegexFilter(r"#### (\-?[0-9\.\,]+)"),
        "numeric_match_flexible": filters.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    }
    ignored = [",", r"\$", r"(?s).*#### ", r"\.$"]
    rng = random.Random(3)
    words = "#### 18 18. 18.0 $18 1,8 -18 7 seven is ... $ ,"
    pieces = [*words.split(), "\n#### 18", "#### 18."]
    for _ in range(400):
        text = " ".join(rng.choice(pieces) for _ in range(rng.randint(0, 7)))
        reference = rng.choice(["so 9 * 2\n#### 18", "18", "#### 1,800", "-18"])
        for name, rule in rules.items():
            filtered = rule.apply([[text]], [{}])
            extracted = next(iter(filtered))[0]
            expected = exact([extracted], [reference], regexes_to_ignore=ignored, ignore_case=True)["exact_match"]
            assert per_item(f"{name}:compare=text", written(text, reference)) == expected, (name, text, reference)


@pytest.mark.parametrize(
    ("text", "reference", "contains"),
    [
        ("It was Abraham Lincoln, in 1860.", "abraham lincoln", 1),
        ("a party", "art", 0),
        ("party art", "art", 1),
        ("the U.S. Army", "u s", 1),
        ("首都是北京市", "北京", 1),
        ("ｗｉｄｅ ＡＢＣ", "abc", 1),
        ("iPhone手机", "iphone", 1),
        ("in 1998年", "1998", 1),
        ("in 19980", "1998", 0),
        ("Straße", "STRASSE", 1),
        ("anything", "...", 0),
        ("", "x", 0),
        ("東京タワー", "タワー", 1),
        ("อยู่กรุงเทพมหานคร", "กรุงเทพ", 1),
    ],
)
def test_a_text_that_contains_an_answer(text, reference, contains):
    assert per_item("contains", written(text, reference)) == contains


def test_any_alias_counts():
    assert per_item("contains", written("by the Bard", "Shakespeare", "the bard")) == 1


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 2), (6, 6), (7, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n, c):
    right = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(right, k))
        assert unbiased(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_records():
    samples = written(["#### 1", "#### 2", "#### 3", "#### 1"], "1")
    assert per_item("pass_at_k:k=2:by=numeric_match", samples) == pytest.approx(5 / 6)
    assert per_item("pass_at_k:k=1", written(["cat", "The cat", "dog", "cow"], "cat")) == 0.5
    with pytest.raises(UserError, match="k=5 needs 5 samples of each item, and item 0 has 4; generate more samples or"):
        figure_of("pass_at_k:k=5", [samples])
    with pytest.raises(UserError, match=r"metric f1 gives 0\.66\d* for one of item 0; set by to a metric of 0 and 1"):
        figure_of("pass_at_k:by=f1", [written("big cat", "cat")])
    with pytest.raises(UserError, match="no metric 'tests'"):
        figure_of("pass_at_k:by=tests", [samples])
