"""Baselines against brute force, by hand and against the xz program."""

import json
import math
import random
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest

from data_pipeline.base.errors import UserError
from llmscale.evaluate import baselines
from llmscale.evaluate.baselines import Baselines, unigram_bits_per_byte, xz_bits_per_byte


def test_unigram_by_hand():
    # c(0) = 2, c(1) = 1, c(2) = 0, N = 3, V = 3: probabilities 3/6, 2/6, 1/6.
    bits = -math.log2(3 / 6) - 2 * math.log2(1 / 6)
    assert unigram_bits_per_byte([[0, 1], [0]], [[0, 2], [2]], 3, heldout_bytes=4) == pytest.approx(bits / 4, rel=1e-12)


def test_unigram_without_training_text_is_uniform():
    assert unigram_bits_per_byte([], [[1, 2, 3]], 256, heldout_bytes=3) == pytest.approx(8)


def test_unigram_counts_the_end_of_document():
    eos = 0
    documents, heldout = [[3, 4], [4]], [[4], [3, 3]]
    with_eos = unigram_bits_per_byte([[*d, eos] for d in documents], [[*d, eos] for d in heldout], 5, 10)
    # 5 training tokens, 2 of them eos; of 5 held-out tokens 2 are eos.
    bits = -math.log2(3 / 10) * 2 - math.log2(3 / 10) - 2 * math.log2(2 / 10)
    assert with_eos == pytest.approx(bits / 10, rel=1e-12)
    assert with_eos > unigram_bits_per_byte(documents, heldout, 5, 10)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", [list, tuple, lambda tokens: np.array(tokens, dtype=np.uint16)])
def test_unigram_against_a_counter(monkeypatch, block, form):
    monkeypatch.setattr(baselines, "_BLOCK", block)
    draw = random.Random(block)
    vocab = 50
    training = [[min(int(draw.expovariate(0.2)), vocab - 1) for _ in range(draw.randrange(30))] for _ in range(40)]
    heldout = [[draw.randrange(vocab) for _ in range(draw.randrange(9))] for _ in range(20)]
    counts = Counter(token for document in training for token in document)
    total = sum(counts.values())
    bits = -sum(math.log2((counts[token] + 1) / (total + vocab)) for document in heldout for token in document)
    result = unigram_bits_per_byte((form(d) for d in training), (form(d) for d in heldout), vocab, 123)
    assert result == pytest.approx(bits / 123, rel=1e-12)


@pytest.mark.parametrize("token", [-1, 5])
def test_unigram_refuses_tokens_outside_the_vocabulary(token):
    with pytest.raises(ValueError, match=f"token {token} .* 5 tokens"):
        unigram_bits_per_byte([[1, token]], [[1]], 5, 1)


def test_nothing_held_out_is_the_users_mistake():
    with pytest.raises(UserError, match=r"data\.holdout"):
        xz_bits_per_byte(["", ""])
    with pytest.raises(UserError, match=r"data\.holdout"):
        unigram_bits_per_byte([[1]], [], 5, 0)


def test_xz_counts_utf8_bytes_and_does_not_care_where_documents_end():
    text = "训练语言模型 and déjà vu\n" * 200
    whole = xz_bits_per_byte([text])
    assert xz_bits_per_byte(text[start : start + 17] for start in range(0, len(text), 17)) == whole
    assert whole < 0.5
    draw = random.Random(0)
    noise = "".join(chr(draw.randrange(128)) for _ in range(20_000))
    assert 7 < xz_bits_per_byte([noise]) < 7.3  # 7 bits of entropy a character, and the container


@pytest.mark.skipif(shutil.which("xz") is None, reason="no xz program here")
def test_xz_is_what_the_program_gives():
    text = "".join(f"{number} bottles of beer on the wall, {number} bottles of beer.\n" for number in range(3000))
    program = subprocess.run(["xz", "-9e", "-c"], input=text.encode(), capture_output=True, check=True).stdout
    assert xz_bits_per_byte([text]) == pytest.approx(8 * len(program) / len(text.encode()), abs=0.01)


def test_json_form():
    stated = json.loads(json.dumps(Baselines(xz=1.5, unigram=2.25).as_json()))
    assert stated == {"xz": {"bits_per_byte": 1.5}, "unigram": {"bits_per_byte": 2.25}}
