"""Normal forms are those of the standard library, however many marks stand in a row."""

from __future__ import annotations

import random
import sys
import time
import unicodedata
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.unicode import LONG_RUN, Form, holds_long_run, normalize

MARKS = [chr(point) for point in range(0x10000) if unicodedata.combining(chr(point))]
# With characters that become marks, or letters and marks.
ODD = [*"aéǭ각가한ﬁ中\u0344\u0f73\u0f75\u0f81\uff76\uff9e\uff9f\u3099\U0001d15e"]

runs = st.builds(
    lambda seed, size, odd: "".join(random.Random(seed).choices(MARKS + odd * 40, k=size)),
    st.integers(0, 1000),
    st.integers(LONG_RUN - 3, 2 * LONG_RUN),
    st.lists(st.sampled_from(ODD), max_size=2),
)
texts = st.lists(runs | st.text(max_size=8) | st.text(ODD, max_size=8), max_size=5).map("".join)


@pytest.mark.parametrize("form", get_args(Form))
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_as_the_standard_library(form: Form, text: str) -> None:
    assert normalize(form, text) == unicodedata.normalize(form, text)


@pytest.mark.parametrize("form", ["NFD", "NFKD"])
def test_every_character_that_becomes_marks_counts_as_one(form: Form) -> None:
    for point in [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]:
        decomposed = unicodedata.normalize(form, chr(point))
        assert holds_long_run(form, chr(point) * LONG_RUN) == all(map(unicodedata.combining, decomposed)), hex(point)


@given(before=st.text("ab中", max_size=2 * LONG_RUN), behind=st.text("ab中", max_size=9))
def test_a_run_is_found_wherever_it_stands(before: str, behind: str) -> None:
    assert holds_long_run("NFC", before + "\u0301" * LONG_RUN + behind)
    assert not holds_long_run("NFC", before + "\u0301" * (LONG_RUN - 1) + behind)


@pytest.mark.parametrize("form", get_args(Form))
def test_takes_no_more_than_its_size(form: Form) -> None:
    started = time.process_time()
    normalize(form, "a" + "\u0301\u0327\u05b0" * 200_000 + "\uff9e\u0327" * 200_000)
    assert time.process_time() - started < 10  # five minutes, by insertion
