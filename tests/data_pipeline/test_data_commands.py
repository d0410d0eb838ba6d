"""`llmscale data tokenizer` and `llmscale data stats`: what they print, keep and refuse."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import yaml
from click.testing import CliRunner, Result

from data_pipeline.config import DataConfig
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.statistics import sample_documents
from llmscale.cli import cli
from llmscale.config import load_config
from llmscale.data_commands.tokenizer import split
from llmscale.train.run_directory import RunDirectory
from tests.data_pipeline.corpora import config, texts, write_files, write_jsonl, write_lines
from tests.data_pipeline.tokenizer.vocabularies import bert_file, gpt2_files, t5_file

TRAIN = {"train": {"vocab_size": 500}}


def write_config(folder: Path, tokenizer: dict[str, Any], *sources: dict[str, Any], **data: Any) -> Path:
    path = folder / "config.yaml"
    settings = {
        "run": {"directory": str(folder / "run")},
        "data": {"sources": list(sources), "tokenizer": tokenizer, "lanes": 4, **data},
        "model": {"max_positions": 2048},
        "train": {"steps": 2, "global_batch": 4, "micro_batch": 4},
    }
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)], catch_exceptions=False)


def test_the_tokenizer_is_trained_once_and_ready_for_the_run(tmp_path: Path) -> None:
    documents = texts(80)
    path = write_config(tmp_path, TRAIN, write_jsonl(tmp_path / "data", documents))
    command = [sys.executable, "-m", "llmscale", "data", "tokenizer", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "training a bpe tokenizer of 500 tokens\n")
    kept = load_tokenizer(tmp_path / "run" / "tokenizer")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["kind    sentencepiece", f"size    {kept.vocab_size:,} tokens"]
    assert lines[2] == "roles   bos 1 <s>, eos 2 </s>, pad 3 <pad>, unk 0 <unk>"
    assert f"folder  {tmp_path}/run/tokenizer" in lines
    shown = documents[0][:160]
    assert lines[-1].strip().replace("|", "") == repr(shown)[1:-1].strip()
    assert lines[-1].count("|") == len(kept.encode(shown)) - 1
    again = run("tokenizer", path)
    assert (again.exit_code, again.stderr, again.stdout) == (0, "", done.stdout)
    RunDirectory(tmp_path / "run").require_same_run(load_config(path))


def test_the_tokenizer_has_the_roles_of_the_objective(tmp_path: Path) -> None:
    bert = {"kind": "wordpiece", "path": str(bert_file(tmp_path / "bert"))}
    path = write_config(tmp_path, bert, write_jsonl(tmp_path / "data", texts(20)))
    done = run("tokenizer", path, "-o", tmp_path / "out", "data.tokenizer.lower_case=false", "objective.name=masked")
    assert done.exit_code == 0, done.stderr
    assert "cls 2 [CLS], sep 3 [SEP], mask 4 [MASK]" in done.stdout
    assert load_tokenizer(tmp_path / "out").decode(load_tokenizer(tmp_path / "out").encode("The")) == "The"
    assert not (tmp_path / "run").exists()
    t5 = {"data.tokenizer.kind": "sentencepiece", "data.tokenizer.path": t5_file(tmp_path / "t5")}
    overrides = [f"{key}={value}" for key, value in {**t5, "objective.name": "denoising"}.items()]
    done = run("tokenizer", path, "-o", tmp_path / "t5 out", *overrides)
    made = load_tokenizer(tmp_path / "t5 out")
    last = sum(role.startswith("sentinel_") for role in made.special) - 1
    assert f"sentinel_0 to sentinel_{last} {made.vocab_size - 1} to {made.vocab_size - 1 - last}" in done.stdout


def test_split_shows_every_character_once(tmp_path: Path) -> None:
    data = config({"paths": ["unused"]}, tokenizer={"kind": "gpt2", "path": str(gpt2_files(tmp_path / "gpt2"))})
    tokenizer = prepare_tokenizer(data, tmp_path / "tokenizer")
    text = "Cut 你好 😀 and 龘 \ufffd end"
    pieces = split(tokenizer, tokenizer.encode(text))
    assert len(pieces) == len(tokenizer.encode(text))
    assert "".join(pieces) == text
    assert "" in pieces


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """JSON lines with bad ones, and Chinese lines, under a T5-like model."""
    jsonl = write_jsonl(tmp_path / "json", texts(50))
    with open(tmp_path / "json" / "0.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"text": ""}\nnot json\n{"other": 1}\n')
    lines = write_lines(tmp_path / "lines", ["你好龘。" * n for n in range(1, 40)])
    return write_config(tmp_path, {"path": str(t5_file(tmp_path / "t5"))}, jsonl, {**lines, "label": "中文"})


def test_statistics_are_those_of_every_document(mixed: Path) -> None:
    done = run("stats", mixed, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(mixed.parent / "t5" / "spiece.model"))
    expected = {
        f"{mixed.parent}/json/*.jsonl": [text for text in texts(50) if text.strip()],
        "中文": ["你好龘。" * n for n in range(1, 40)],
    }
    for row, (label, documents) in zip(found["sources"], expected.items(), strict=True):
        ids = [processor.encode(text) for text in documents]
        lengths = sorted(map(len, ids))
        tokens, size = sum(lengths), sum(len(text.encode()) for text in documents)
        characters = sum(map(len, documents))
        assert (row["source"], row["whole"], row["documents"]) == (label, True, len(documents))
        assert (row["bytes"], row["characters"], row["tokens"]) == (size, characters, tokens)
        assert row["tokens_per_byte"] == pytest.approx(tokens / size)
        assert row["characters_per_token"] == pytest.approx(characters / tokens)
        assert row["unknown_rate"] == pytest.approx(sum(part.count(2) for part in ids) / tokens)
        lengths_found = row["document_tokens"]
        assert lengths_found["mean"] == pytest.approx(tokens / len(documents))
        assert lengths_found["max"] == lengths[-1]
        for percent in (10, 50, 90, 99):
            place = (len(lengths) - 1) * percent // 100
            assert lengths_found[f"p{percent}"] in lengths[place : place + 2]
    assert sum(found["sources"][0]["dropped"].values()) == 3
    assert found["sources"][1]["dropped"] == {}
    assert found["total"]["tokens"] == sum(row["tokens"] for row in found["sources"])
    assert found["total"]["dropped"] == found["sources"][0]["dropped"]
    assert found["sources"][1]["unknown_rate"] > 0.1


def test_the_table_has_a_column_for_each_source(mixed: Path) -> None:
    figures = json.loads(run("stats", mixed, "--json").stdout)
    done = run("stats", mixed)
    assert done.stdout.startswith("sentencepiece tokenizer of ")
    for row in [*figures["sources"], figures["total"]]:
        for value in (f"{row['tokens']:,}", f"{row['tokens_per_byte']:.3f}", f"{row['unknown_rate']:.3%}"):
            assert value in done.stdout
    assert "中文" in done.stdout


def test_the_run_s_tokenizer_is_used_where_it_fits(tmp_path: Path) -> None:
    path = write_config(tmp_path, TRAIN, write_jsonl(tmp_path / "data", texts(80)))
    assert run("stats", path, "--json").stderr == "training a bpe tokenizer of 500 tokens\n"
    assert not (tmp_path / "run").exists()
    run("tokenizer", path)
    kept = run("stats", path, "--json")
    assert kept.stderr == ""
    assert json.loads(kept.stdout)["tokenizer"]["digest"] == load_tokenizer(tmp_path / "run" / "tokenizer").digest
    other = run("stats", path, "--json", "data.tokenizer.kind=bytes")
    assert json.loads(other.stdout)["tokenizer"]["kind"] == "bytes"
    assert "the run's tokenizer is not used: " in other.stderr


@pytest.mark.parametrize("writer", [write_jsonl, write_lines, write_files])
def test_samples_are_even_and_all_is_all(tmp_path: Path, writer: Any) -> None:
    documents = texts(800 if writer is write_files else 4000, longest=100)
    other = write_lines(tmp_path / "other", ["first"])
    data: DataConfig = config(other, writer(tmp_path / "data", documents), span_bytes=1 << 16, lanes=1)
    corpus = Corpus.training(data)
    whole = [document.text for document in sample_documents(corpus, 1, 0)]
    assert sorted(whole) == sorted(text.replace("\n", " ") if writer is write_lines else text for text in documents)
    size = sum(len(text.encode()) for text in whole)
    limit = size // 4
    sample = list(sample_documents(corpus, 1, limit))
    numbers = [int(document.text.split(" ")[0].partition(".")[2]) for document in sample]
    assert len(set(numbers)) == len(numbers)
    # What is read at once has about 64 KiB.
    assert limit * 0.7 <= sum(len(document.text.encode()) for document in sample) <= limit + (1 << 17)
    late = sum(number >= len(documents) / 2 for number in numbers) / len(numbers)
    assert 0.3 < late < 0.7


@pytest.mark.parametrize("command", ["tokenizer", "stats"])
def test_mistakes_are_one_sentence(tmp_path: Path, command: str) -> None:
    source = write_jsonl(tmp_path / "data", texts(9))
    path = write_config(tmp_path, {"kind": "bytes"}, source)
    (tmp_path / "list.json").write_text("[]")
    for arguments, message in (
        ((tmp_path,), f"cannot read config file {tmp_path}: Is a directory"),
        ((tmp_path / "none.yaml",), "no config file"),
        ((path, "data.tokenizer.kind=huggingface"), "kind huggingface needs a path"),
        ((path, "data.tokenizer.kind=gpt2", f"data.tokenizer.path={tmp_path}/list.json"), "merges"),
        ((path, "data.tokenizer.kind=huggingface", f"data.tokenizer.path={tmp_path}/list.json"), "holds a JSON list"),
        ((path, "data.sources.0.paths=[none]"), "no file matches none"),
        ((path, "data.sources.0.field=body"), "no field 'body'"),
        ((path, "data.tokenizer.special.eos=x"), "has no token 'x'"),
        ((path, "data.tokenizer.special.end=x"), "'end' is no role"),
    ):
        done = run(command, *arguments)
        assert done.exit_code == 2, arguments
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
        assert not (tmp_path / "run").exists()
    done = run(command, path, "data.sources.0.kind=tokens", "data.tokenizer={kind: sentencepiece}")
    assert (done.exit_code, "has kind tokens, but text is needed here" in done.stderr) == (2, True)
    if command == "tokenizer":
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        for output, message in (("full", "exists and is no tokenizer"), ("list.json/x", "cannot make")):
            done = run("tokenizer", path, "-o", tmp_path / output)
            assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
            assert message in done.stderr


def test_a_damaged_file_is_told_where_a_tokenizer_is_trained_of_it(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a", texts(300))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts(3000, seed=1))
    (tmp_path / "a" / "cut.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:2000])
    source["paths"] = [f"{tmp_path}/a/*"]
    done = run("tokenizer", write_config(tmp_path, {"train": {"vocab_size": 400}}, source))
    assert done.exit_code == 0, done.output
    [warning] = [line for line in done.stderr.splitlines() if line.startswith("warning")]
    assert f"{tmp_path}/a/cut.jsonl.gz is cut short" in warning
