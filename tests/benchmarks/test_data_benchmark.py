"""The data benchmark on tiny text: every contender does what it claims, every measurement gives its bars."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data, data_processes
from benchmarks.data import Options, Results, compare, estimate
from benchmarks.data_contenders import BLOCK_BYTES, CONTENDERS, FASTEST, build, library_encode
from benchmarks.data_processes import RESUMES, quickstart_shares, run_alone
from benchmarks.data_setup import OBJECTIVES, Setup, prepare_setup, texts_of, transformers_tokenizer, write_indexed
from benchmarks.harness import Sample
from data_pipeline.base.records import RecordWriter
from data_pipeline.tokenizer import load_tokenizer

OPTIONS = Options(repeats=2, streaming_python=sys.executable, quickstart=None, quickstart_steps=0)
TEXTS = [f"def number_{i}():\n    return {i} # " + "the cat sat on the mat; " * (20 + i % 50) for i in range(300)]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "given.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (folder / "scratch").mkdir()
    made = prepare_setup(folder / "scratch", 0.5, [str(folder / "given.jsonl")], None, None, folder / "cache")
    made.all_lanes, made.sequence, made.batch, made.resumes, made.first_batch = 96, 128, 8, [500, 2_000], 16
    made.indexed_tokens, made.indexed_batches, made.memory_rounds = 100_000, 4, 1
    write_indexed(made)
    return made


def test_estimates_are_medians_of_what_rounds_give() -> None:
    assert vars(compare([4.0, 8.0, 2.0], [2.0, 4.0, 1.0])) == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert compare([4.0, 6.0, 5.0], [1.0, 2.0, 2.5, 3.0]).value == 5 / 2.25
    noisy = estimate([3.0, 4.0, 5.0, 9.0])
    assert noisy.value == statistics.median([3.0, 4.0, 5.0, 9.0])
    assert noisy.low < noisy.value < noisy.high


def test_text_and_files_have_the_sizes_they_should(setup: Setup) -> None:
    assert texts_of(setup.text)[: len(TEXTS)] == TEXTS
    assert Path(setup.text).stat().st_size == pytest.approx(0.5e6, abs=2e3)
    assert len(setup.copies) == 10
    assert {Path(copy).stat().st_ino for copy in setup.copies} == {Path(setup.big).stat().st_ino}
    assert Setup.load(setup.scratch) == setup


@pytest.mark.parametrize("tokenizer", ["gpt2", "t5"])
def test_all_contenders_have_the_same_tokenizer(setup: Setup, tokenizer: str) -> None:
    own = load_tokenizer(setup.tokenizer_dir(tokenizer))
    texts = ["def number(): return 1", "the cat sat"]
    bare = [list(ids) for ids in library_encode(setup, tokenizer)(texts)]
    assert [ids.tolist() for ids in own.encode_batch(texts)] == bare
    if tokenizer == "gpt2":
        assert [list(ids) for ids in library_encode(setup, FASTEST)(texts)] == bare
    theirs = transformers_tokenizer(setup, tokenizer)(texts, add_special_tokens=False)["input_ids"]
    assert theirs == bare


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_counts_what_it_went_through(setup: Setup, name: str) -> None:
    step = build(setup, name)
    done = [step(), step()]
    whole = setup.lanes * setup.step_rounds * setup.sequence
    if name in ("indexed", "gather", "tuned gather"):
        assert done == [setup.indexed_batches * setup.batch * setup.sequence] * 2
    elif name in ("reading", "bare reading"):
        assert done == [len(texts_of(setup.big))] * 2
    elif name.endswith("recipe"):
        tokens = sum(map(len, library_encode(setup, name.partition("/")[0])(texts_of(setup.recipe))))
        assert done == [pytest.approx(tokens, rel=0.05)] * 2
    elif name.endswith("bare"):
        assert all(whole <= count < whole + BLOCK_BYTES for count in done)
    elif name == "opening":
        assert all(0 < seconds < 1 for seconds in done)
    else:
        # An objective may take more text for a sample, or have a few tokens of its own.
        assert all(0.9 * whole < count < 1.3 * whole for count in done)


def test_the_gathers_read_windows_of_the_file(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.fromfile(f"{setup.indexed}.bin", dtype=setup.indexed_dtype)
    seen: list[torch.Tensor] = []
    original = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: seen.append(original(array)) or seen[-1])  # type: ignore[func-returns-value]
    for name in ("gather", "tuned gather"):
        build(setup, name)()
    plain, tuned = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert all(torch.equal(one, other) for one, other in zip(plain, tuned, strict=True))
    assert plain[0].dtype == torch.int64
    starts = {tuple(tokens[i : i + setup.sequence + 1]) for i in range(0, len(tokens), setup.sequence)}
    assert all(tuple(row) in starts for row in plain[0].tolist())


@pytest.mark.slow
def test_resumes_are_timed_after_the_samples_that_are_said(setup: Setup) -> None:
    setup.save()
    found = run_alone("resume", setup)
    assert {len(found["500"]), len(found["2000"])} == {RESUMES}
    assert all(0 < seconds < found["process_seconds"] for seconds in found["500"] + found["2000"])
    first = run_alone("first batch", setup)
    assert 0 < first["resume_seconds"] < first["process_seconds"]


def test_memory_counts_the_workers(setup: Setup) -> None:
    setup.save()
    found = run_alone("memory", setup)
    assert set(found) == {"pss", "rss", "pss_later", "rss_later", "process_seconds"}
    # Three processes share their imports, which the sum of resident sets counts three times.
    assert 5 < found["pss"] < found["rss"]


@pytest.mark.slow
def test_streaming_that_cannot_be_imported_leaves_its_bar_open(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "streaming.py").write_text("raise ImportError('streaming is not for this machine')")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    results = Results()
    data.measure_indexed(setup, Options(1, str(python), None, 0), results)
    gather, streaming = results.bars
    assert 0 < gather["value"] < 20
    assert streaming == {
        "name": ".bin/.idx through the loader over mosaicml-streaming",
        "value": None,
        "interval": None,
        "bar": ">= 15.0",
        "met": False,
    }
    assert "streaming is not for this machine" in results.figures["notes"][0]


@pytest.mark.slow
def test_two_processes_prepare_what_one_does(setup: Setup) -> None:
    assert data_processes.prepare_seconds(setup, 2) > 0
    assert not (Path(setup.scratch) / "prepared").exists()


def test_the_share_of_the_quickstart_leaves_out_its_first_row(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "metrics.jsonl", 1) as writer:
        for step, waited in ((5, 9.0), (10, 0.01), (15, 0.03)):
            writer.write({"step": step, "loss": 1.0, "data_seconds": waited, "step_seconds": 10.0})
        writer.write({"step": 15, "evaluation": {"loss": 1.0}})
    assert quickstart_shares(tmp_path) == [0.001, 0.003]
    results = Results()
    data.measure_quickstart(Setup("unused"), Options(1, None, str(tmp_path), 0), results)
    assert results.bars[0]["value"] == 0.2
    assert results.bars[0]["met"]


def test_the_closing_line_has_every_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {
        f"{tokenizer}/{name}": [Sample(1.0, 1.0, 100.0)] * 3
        for tokenizer in data.TOKENIZERS
        for name in ("bare", "recipe", "loop", *OBJECTIVES)
    }
    others = ("indexed", "gather", "tuned gather", "streaming", "reading", "bare reading", "opening")
    steps[f"{FASTEST}/bare"] = [Sample(1.0, 1.0, 100.0)] * 3
    steps |= {name: [Sample(0.5, 0.5, 10.0)] * 3 for name in others}
    alone = {
        "resume": {"1000": [1.0], "1000000": [1.2], "epochs": [8, 9]},
        "first batch": {"seconds": 3.0, "resume_seconds": 4.0},
        "memory": {"pss": 200.0, "rss": 300.0, "pss_later": 210.0, "rss_later": 310.0},
        "memory of ten files": {"pss": 220.0, "rss": 300.0},
    }
    made = Setup("scratch", text=__file__, big=__file__, tokenizers={"gpt2": {"kind": "bytes"}})
    found = subprocess.CompletedProcess([], 0, "0.13.0\n", "")
    for name, value in {
        "prepare_setup": lambda *_: made,
        "write_indexed": lambda *_: None,
        "compete": lambda setup, names, *_: {name: steps[name] for name in names},
        "run_alone": lambda name, _: dict(alone[name]),
        "prepare_seconds": lambda _, processes: 10.0 / processes,
        "two_at_once": lambda _: 1.9,
        "short_quickstart": lambda *_: Path("run"),
        "quickstart_shares": lambda _: [0.002, 0.003],
    }.items():
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    monkeypatch.setattr(sys, "argv", ["data"])
    data.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["benchmark"] == "data"
    assert len(line["bars"]) == 13 + 2 + 2 + 2 + 3 + 1 + 1
    assert all(set(row) == {"name", "value", "interval", "bar", "met"} for row in line["bars"])
    met = {row["name"]: row["met"] for row in line["bars"]}
    assert met["data prepare: speed of 2 processes over 1"]
    assert met["resume after 1,000,000 samples over resume after 1,000"]
    assert not met["gpt2: JSON lines to causal batches over transformers' run_clm recipe"]
