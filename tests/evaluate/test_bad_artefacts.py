"""Whatever has happened to an artefact, and whatever is asked of it, is one sentence that names its file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from llmscale.cli import cli
from llmscale.evaluate.artefact import ITEMS_FILE, META_FILE, QUESTIONS_FILE, Meta, Record
from llmscale.evaluate.artefact_writer import ArtefactWriter
from llmscale.evaluate.contamination.seen_items import SEEN_FILE
from llmscale.evaluate.metrics import fitting
from tests.evaluate.metrics.records import random_records

DEEP = "[" * 200_000


def write(folder: Path, kind: str, records: list[Record] | None = None) -> Path:
    made = random_records(kind, 5, seed=1) if records is None else records
    meta = Meta(
        *(1, "task", "digest", kind, ["accuracy"] if kind == "choice" else fitting(kind)[:1], len(made)),
        *(None, 0, "run/checkpoints/step-1", "model", "reading", "causal", "exact"),
    )
    writer = ArtefactWriter(folder, meta, [record.item for record in made])
    writer.append(made)
    writer.close()
    return folder


def said(*arguments: object) -> str:
    """What a command that refuses its input says."""
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 2, (result.output, result.exception)
    *warnings, sentence = result.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    assert sentence.startswith("llmscale: ")
    return sentence.removeprefix("llmscale: ")


def _linked(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _made(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty items": (ITEMS_FILE, lambda path: path.write_bytes(b""), "no item yet"),
    "empty meta": (META_FILE, lambda path: path.write_bytes(b""), "is damaged: it is no JSON"),
    "deep items": (ITEMS_FILE, lambda path: path.write_text(f"{DEEP}\n"), "is damaged"),
    "deep meta": (META_FILE, lambda path: path.write_text(DEEP), "is damaged: it is no JSON"),
    "deep findings": (SEEN_FILE, lambda path: path.write_text(DEEP), "is damaged"),
    "long number": (ITEMS_FILE, lambda path: path.write_text('{"number": ' + "9" * 5000 + "}\n"), "is damaged"),
    "no items": (ITEMS_FILE, lambda path: path.unlink(), "cannot"),
    "endless items": (ITEMS_FILE, lambda path: _linked(path, "/dev/zero"), "no regular file"),
    "items that are a folder": (ITEMS_FILE, lambda path: _made(path, Path.mkdir), ""),
    "items that nobody writes": (ITEMS_FILE, lambda path: _made(path, os.mkfifo), ""),
    "items that link to themselves": (ITEMS_FILE, lambda path: _linked(path, ITEMS_FILE), ""),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_artefact_is_named(name: str, tmp_path: Path) -> None:
    file, damage, expected = DAMAGE[name]
    whole, broken = write(tmp_path / "whole", "choice"), write(tmp_path / "broken", "choice")
    damage(broken / file)
    for arguments in (("eval", broken), ("compare", whole, broken)):
        sentence = said(*arguments)
        assert str(broken) in sentence
        assert expected in sentence


@pytest.mark.parametrize("kind", ["choice", "likelihood", "generate", "tag"])
def test_torn_bytes_are_read_rightly_or_name_their_file(kind: str, tmp_path: Path) -> None:
    whole, torn = write(tmp_path / "whole", kind), write(tmp_path / "torn", kind)
    draw = random.Random(kind)
    refused = 0
    for name in [ITEMS_FILE, META_FILE] * 6:
        before = (torn / name).read_bytes()
        first = draw.randrange(len(before))
        (torn / name).write_bytes(before[:first] + draw.randbytes(draw.randrange(4)) + before[first + 30 :])
        for arguments in (("eval", torn, "--json"), ("compare", whole, torn, "--common")):
            result = CliRunner().invoke(cli, [*map(str, arguments)])
            assert result.exception is None or isinstance(result.exception, SystemExit)
            if result.exit_code:
                refused += 1
                assert result.exit_code == 2
                assert str(torn) in result.stderr.splitlines()[-1]
        (torn / name).write_bytes(before)
    assert refused > 5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gold": []}, "metric accuracy cannot be computed of item 1: it has no right answer"),
        ({"gold": [9]}, "its right answer is number 9 of 4"),
        ({"answers": []}, "it has 0 scored answers or labels, where 2 or more are needed"),
        ({"group": "a"}, "item 0 has no group and others do"),
    ],
)
def test_an_item_without_what_a_metric_needs_names_its_file(changes: dict, expected: str, tmp_path: Path) -> None:
    records = random_records("choice", 3, seed=2)
    folder = write(tmp_path / "a", "choice", records)
    lines = [json.dumps({**asdict(record), **(changes if record.number == 1 else {})}) for record in records]
    (folder / ITEMS_FILE).write_text("\n".join(lines) + "\n")
    sentence = said("eval", folder)
    assert sentence.startswith(f"{folder}: ")
    assert expected in sentence


def test_metrics_that_an_artefact_does_not_have(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "choice")
    assert said("eval", folder, "--metrics", "foo").startswith(f"{folder}: there is no metric 'foo'; those of tasks of")
    assert f"{folder}: metric bleu does not fit tasks of kind choice" in said("eval", folder, "--metrics", "bleu")
    other = write(tmp_path / "b", "choice")
    assert "there is no metric 'foo'" in said("compare", folder, other, "--metric", "foo")


def test_damaged_questions_are_named_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = write(tmp_path / "a" / "evaluations" / "x", "choice")
    (folder / QUESTIONS_FILE).write_text(DEEP)
    assert str(tmp_path / "a") in said("report", tmp_path / "a")


USAGE: list[tuple[list[str], str]] = [
    (["--limit", "0"], "invalid value for '--limit': 0 is not in the range x>=1 (see llmscale eval --help)"),
    (["--few-shot", "x"], "invalid value for '--few-shot': 'x' is not a valid integer"),
    (["--overflow", "cut"], "invalid value for '--overflow': 'cut' is not one of 'refuse', 'truncate-left', 'window'"),
    (["--limt", "3"], "no such option '--limt'; did you mean --limit"),
    (["--tasks"], "option '--tasks' requires an argument"),
]


@pytest.mark.parametrize(("arguments", "expected"), USAGE)
def test_wrong_options_are_one_sentence(arguments: list[str], expected: str) -> None:
    assert said("eval", "run", *arguments).startswith(expected)


def test_an_unknown_command_is_one_sentence_and_no_command_is_the_help() -> None:
    assert said("evl").startswith("no such command 'evl'")
    assert said("--nothing") == "no such option '--nothing' (see llmscale --help)"
    assert "Usage: llmscale" in CliRunner().invoke(cli, []).output


UNUSED: list[tuple[list[str], str]] = [
    (
        ["ARTEFACT", "--limit", "3"],
        "--limit changes nothing of ARTEFACT, which was evaluated already; name a checkpoint",
    ),
    (["ARTEFACT", "--tasks", "sciq"], "--tasks changes nothing of ARTEFACT"),
    (["ARTEFACT", "parallel.tensor=2"], "parallel.tensor=2 changes nothing of ARTEFACT"),
    (["--list", "--tasks", "sciq"], "--tasks changes nothing of the list of tasks; leave it out, or leave out --list"),
    (
        ["run", "--tasks", "sciq", "--batch", "2"],
        "--batch changes nothing of tasks; leave it out, or evaluate on files",
    ),
    (["run", "--tasks", "sciq", "--field", "x"], "--field changes nothing of tasks"),
    (["run", "--data", "x", "--few-shot", "2"], "--few-shot changes nothing of an evaluation on files; leave it out"),
    (["run", "--data", "x", "--metrics", "f1"], "--metrics changes nothing of an evaluation on files"),
]


@pytest.mark.parametrize(("arguments", "expected"), UNUSED)
def test_options_that_would_change_nothing_are_refused(arguments: list[str], expected: str, tmp_path: Path) -> None:
    folder = str(write(tmp_path / "a", "choice"))
    asked = [folder if word == "ARTEFACT" else word for word in arguments]
    assert said("eval", *asked).startswith(expected.replace("ARTEFACT", folder))
