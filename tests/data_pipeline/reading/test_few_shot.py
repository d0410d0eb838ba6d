"""Examples are never the item itself, and depend on the item, the seed and the pool alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.few_shot import Example, FewShotPool, TooFewExamples, content_digest

POOL = [Example(content_digest([f"question {i}"]), f"text {i}", "even" if i % 2 == 0 else "odd") for i in range(20)]


@given(seed=st.integers(0, 2**32), number=st.integers(0, 25), count=st.integers(0, 19))
def test_examples_are_different_and_not_the_item(seed: int, number: int, count: int) -> None:
    item = Example(content_digest([f"  QUESTION   {number}\n"]), "")
    drawn = FewShotPool(POOL).draw(count, item, seed)
    assert len({example.content for example in drawn}) == count
    assert item.content not in {example.content for example in drawn}
    assert drawn == FewShotPool(POOL).draw(count, item, seed)


def test_fewer_are_the_beginning_of_more_and_other_seeds_give_others() -> None:
    pool, item = FewShotPool(POOL), Example("x", "")
    assert pool.draw(3, item, 1) == pool.draw(8, item, 1)[:3]
    assert len({tuple(pool.draw(4, item, seed)) for seed in range(50)}) > 45
    assert len({tuple(pool.draw(4, Example(str(i), ""), 0)) for i in range(50)}) > 45


def test_every_example_is_drawn_as_often_as_others() -> None:
    """4 of 20 for 5,000 items: 1,000 each, within five standard deviations of a binomial."""
    pool = FewShotPool(POOL)
    counts = Counter(example.text for i in range(5000) for example in pool.draw(4, Example(f"item {i}", ""), 7))
    assert len(counts) == 20
    assert all(abs(count - 1000) < 5 * (5000 * 0.2 * 0.8) ** 0.5 for count in counts.values())


def test_the_first_ones_of_the_items_group() -> None:
    pool = FewShotPool(POOL, within_group=True)
    item = Example(POOL[3].content, "", "odd")
    assert [example.text for example in pool.first(3, item)] == ["text 1", "text 5", "text 7"]
    assert {example.group for example in pool.draw(9, item, 0)} == {"odd"}
    with pytest.raises(TooFewExamples) as caught:
        pool.draw(10, item, 0)
    assert caught.value.available == 9
    with pytest.raises(TooFewExamples, match="0 examples"):
        pool.first(1, Example("x", "", "neither"))


def test_none_of_the_items_own_cluster() -> None:
    clustered = [Example(str(i), str(i), cluster="ab"[i % 2]) for i in range(6)]
    pool = FewShotPool(clustered)
    for item in (Example("0", "", cluster="a"), Example("new", "", cluster="a")):
        assert {example.text for example in pool.draw(3, item, 5)} == {"1", "3", "5"}
        with pytest.raises(TooFewExamples, match="3 examples"):
            pool.draw(4, item, 5)
    with pytest.raises(TooFewExamples, match="2 examples"):
        pool.draw(3, Example("1", "", cluster="a"), 5)


def test_examples_with_one_content_count_once() -> None:
    pool = FewShotPool([Example("a", "first"), Example("a", "second"), Example("b", "third")])
    assert [example.text for example in pool.first(2, Example("x", ""))] == ["first", "third"]
    with pytest.raises(TooFewExamples, match="2 examples"):
        pool.first(3, Example("x", ""))
