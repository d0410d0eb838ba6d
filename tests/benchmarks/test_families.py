"""The table of families is made by one command."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.families import LANGUAGES, TWINS, Language, config_of
from llmscale.config import parse_config

WORDS = [
    "the",
    "cats",
    "dogs",
    "run",
    "sleep",
    "often",
    "near",
    "old",
    "houses",
    "and",
    "trees",
    "see",
    "green",
    "birds",
]


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=LANGUAGES)
def test_the_twins_of_each_language_have_valid_configs(language: Language, tmp_path: Path) -> None:
    for name in TWINS:
        parse_config(config_of(name, tmp_path, tmp_path, 30, 2, 32, language.vocabulary, language.coverage))


@pytest.mark.slow
def test_the_table_has_a_row_for_each_family(tmp_path: Path) -> None:
    draw = random.Random(4)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) + f" {number}." for number in range(6000)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    (tmp_path / "pairs").mkdir()
    verbs = ("run", "sleep", "see")
    pairs = [{"sentence_good": f"the cats {v}.", "sentence_bad": f"cats the {v}.", "UID": "passive_1"} for v in verbs]
    (tmp_path / "pairs" / "passive_1.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    command = [sys.executable, "-m", "benchmarks.families", "--text", str(tmp_path / "text.txt")]
    command += ["--pairs", str(tmp_path / "pairs"), "--steps", "3", "--layers", "2", "--hidden-size", "32"]
    done = subprocess.run([*command, "--vocab-size", "400"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *shown, last = done.stdout.strip().splitlines()
    result = json.loads(last)
    assert [row["model"] for row in result["rows"]] == ["GPT-2", "Llama", "BERT", "ModernBERT", "T5"]
    scorers = ["causal", "causal", "pseudo_likelihood", "pseudo_likelihood", "infill"]
    assert [row["scorer"] for row in result["rows"]] == scorers
    assert all(row["pairs"] == 3 and 0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in result["rows"])
    assert all(row["verdict"] for row in result["rows"][1:])
    assert result["tokens"] == 3 * 16 * 128
    assert len(shown) == 7
    assert shown[2].startswith("| GPT-2 |")
