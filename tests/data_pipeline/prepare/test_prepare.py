"""`prepare` on real processes: against documents tokenised by hand, killed at any moment, on several ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.cache import materialise
from data_pipeline.finite.format import IndexedDataset
from data_pipeline.finite.shards import Shards
from data_pipeline.finite.views import Examples
from data_pipeline.objectives.packing import Stored
from data_pipeline.prepare.prepare import Outcome, Watcher, prepare
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import BytesTokenizer, load_tokenizer
from tests.data_pipeline.corpora import WRITERS, config, texts, write_jsonl, write_parquet

EOS = 2
PARTS = 4000
"""Bytes of a part in these tests, so that small corpora have many."""
NAMES = [f"{side}.{ending}" for side in ("train", "heldout") for ending in ("bin", "idx", "places")] + ["meta.json"]


def byte_ids(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()] + [EOS]


def documents_of(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset.document(number).tolist() for number in range(dataset.document_count)]


def files_of(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in NAMES if (out / name).exists()}


def run(settings: DataConfig, out: Path, **options: Any) -> Outcome:
    return prepare(settings, out, part_bytes=PARTS, **options)


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_document_once_in_the_order_of_the_corpus(tmp_path: Path, kind: str) -> None:
    settings = config(WRITERS[kind](tmp_path / "data", texts(60)), lanes=1, holdout=0.2)
    outcome = run(settings, tmp_path / "out", processes=2)
    assert outcome.meta is not None
    for side, held_out in (("train", False), ("heldout", True)):
        corpus = Corpus.training(settings)
        expected = list(corpus.documents(held_out=held_out))
        prefix = tmp_path / "out" / side
        assert documents_of(prefix) == [byte_ids(document.text) for document in expected]
        places = IndexedDataset(prefix).places
        assert places is not None
        assert places.tolist() == [[document.file, document.position] for document in expected]
        assert outcome.meta[side] == {
            "documents": len(expected),
            "tokens": sum(len(byte_ids(document.text)) for document in expected),
            "bytes": sum(len(document.text.encode()) for document in expected),
        }
        assert outcome.meta["files"] == [file.path for file in corpus.files]
    assert outcome.meta["train"]["documents"] + outcome.meta["heldout"]["documents"] == 60
    assert load_tokenizer(tmp_path / "out" / "tokenizer").digest == outcome.meta["tokenizer"] == BytesTokenizer().digest


def test_processes_ranks_and_the_size_of_parts_change_no_byte(tmp_path: Path) -> None:
    settings = config(write_jsonl(tmp_path / "a", texts(80)), write_parquet(tmp_path / "b", texts(50, 1)), holdout=0.1)
    run(settings, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    assert len(expected) == 7
    run(settings, tmp_path / "two", processes=2)
    assert files_of(tmp_path / "two") == expected
    for rank in (2, 0, 1):
        outcome = run(settings, tmp_path / "ranks", rank=rank, world=3, processes=1 + rank % 2)
        assert (outcome.meta is None) == (rank != 1)
    assert "the rank that finishes last joins them" not in outcome.message
    assert files_of(tmp_path / "ranks") == expected
    assert not (tmp_path / "ranks" / "parts").exists()
    prepare(settings, tmp_path / "large", part_bytes=1 << 30)
    assert {**files_of(tmp_path / "large"), "meta.json": b""} == {**expected, "meta.json": b""}


SCRIPT = """
import json, sys
from data_pipeline.config import DataConfig
from data_pipeline.prepare.prepare import prepare
settings, out, options = json.load(open(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
prepare(DataConfig.model_validate(settings), out, **options)
"""


def start(settings: DataConfig, out: Path, **options: Any) -> subprocess.Popen[bytes]:
    path = out.parent / "settings.json"
    path.write_text(settings.model_dump_json())
    arguments = [str(path), str(out), json.dumps({"part_bytes": PARTS, **options})]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE)


def wait_for(condition: Any, process: subprocess.Popen[bytes] | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.001)


def processes_of(out: Path) -> list[int]:
    """Running processes with `out` on their command line, children that were forked included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_started_again_it_gives_the_same_bytes(tmp_path: Path, processes: int) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(500, longest=200)), span_bytes=1000, holdout=0.1)
    run(settings, tmp_path / "whole")
    out = tmp_path / "out"
    for kill_after in (1, 12):
        process = start(settings, out, processes=processes)
        wait_for(lambda count=kill_after: len(list(out.glob("parts/0*.json"))) >= count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not processes_of(out), seconds=20)
        assert not (out / "meta.json").exists()
    assert len(list(out.glob("parts/*.idx"))) > 12
    # A part whose files were cut after it was finished is made again.
    damaged = min(out.glob("parts/train-*.bin"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    outcome = run(settings, out, processes=processes)
    assert outcome.meta is not None
    assert files_of(out) == files_of(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir()) == sorted([*NAMES, "plan.json", "lock", "tokenizer"])
    again = run(settings, out)
    assert again.meta == outcome.meta
    assert "finished already" in again.message


def test_killed_ranks_go_on_and_finished_parts_are_not_made_again(tmp_path: Path) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(250, longest=200)), span_bytes=1000)
    run(settings, tmp_path / "whole")
    out = tmp_path / "out"
    process = start(settings, out, rank=1, world=2)
    wait_for(lambda: len(list(out.glob("parts/0*.json"))) >= 5, process)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("parts/0*.json")}
    assert all(int(path.stem) % 2 == 1 for path in kept)
    assert run(settings, out, rank=0, world=2).meta is None
    with pytest.raises(UserError, match=r"lacks \d+ of \d+ parts .* run `llmscale data prepare` without --merge first"):
        run(settings, out, merge_only=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert run(settings, out, rank=1, world=2).meta is not None
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_killed_worker_process_is_reported(tmp_path: Path) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(3000, longest=200)), span_bytes=1000)
    out = tmp_path / "out"
    process = start(settings, out, processes=2)
    wait_for(lambda: len(processes_of(out)) == 3 and list(out.glob("parts/0*.json")), process)
    child = next(pid for pid in processes_of(out) if pid != process.pid)
    os.kill(child, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"a process was ended by SIGKILL (out of memory?); start the command again" in stderr
    assert not processes_of(out)


def test_another_config_or_folder_is_refused(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data", texts(30))
    out = tmp_path / "out"
    run(config(source), out)
    before = files_of(out)
    with pytest.raises(UserError, match=r"out was prepared with other holdout \([\d.]+, now 0\.5\); name a new folder"):
        run(config(source, holdout=0.5), out)
    with pytest.raises(UserError, match=r"out was prepared with other cleaning \(\[\], now \[\{'step': 'whitespace'"):
        run(config(source, cleaning=[{"step": "whitespace"}]), out)
    with pytest.raises(UserError, match=r"out was prepared with other part_bytes \(4000, now 99\)"):
        prepare(config(source), out, part_bytes=99)
    (tmp_path / "data" / "0.jsonl").write_text('{"text": "other"}\n')
    with pytest.raises(UserError, match="other sources"):
        run(config(source), out)
    assert files_of(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine holds 'thesis.txt' and no prepared data; name a new folder"):
        run(config(source), tmp_path / "mine")
    with pytest.raises(UserError, match=r"thesis.txt is a file"):
        run(config(source), tmp_path / "mine" / "thesis.txt")
    with pytest.raises(UserError, match="rank 2 is not below world 2"):
        run(config(source), out, rank=2, world=2)


def test_finished_files_that_were_cut_are_reported(tmp_path: Path) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(30)))
    run(settings, tmp_path / "out")
    path = tmp_path / "out" / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train\.bin has \d+ bytes, but .*train\.idx describes \d+"):
        run(settings, tmp_path / "out")


def test_bad_records_are_counted_once_and_kept_aside(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data", texts(40), files=1)
    path = tmp_path / "data" / "0.jsonl"
    lines = path.read_text().splitlines()
    lines[3], lines[20] = "{broken", '{"text": 5}'
    path.write_text("\n".join(lines))
    outcome = run(config(source, holdout=0.3), tmp_path / "out", processes=2)
    assert outcome.meta is not None
    assert sum(outcome.meta["dropped"].values()) == 2
    bad = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(record["path"], record["line"]) for record in bad] == [(str(path), 4), (str(path), 21)]
    assert outcome.meta["train"]["documents"] + outcome.meta["heldout"]["documents"] == 38


def test_errors_of_readers_reach_the_caller_from_any_process(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data", texts(200), files=1)
    path = tmp_path / "data" / "0.jsonl"
    path.write_text(path.read_text() + "\n{broken\n")
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"0\.jsonl:201: not JSON"):
            run(config(source, on_bad_record="fail"), tmp_path / f"out{processes}", processes=processes)


def test_duplicates_are_left_out_whatever_divides_the_work(tmp_path: Path) -> None:
    documents = texts(90)
    for copy, original in ((30, 4), (60, 4), (89, 88), (50, 7)):
        documents[copy] = documents[original]
    settings = config(write_jsonl(tmp_path / "data", documents, files=1), holdout=0.2, deduplication={})
    outcome = run(settings, tmp_path / "out", processes=2)
    assert outcome.meta is not None
    assert outcome.meta["dropped"] == {"exact duplicate": 4}
    kept = documents_of(tmp_path / "out" / "train") + documents_of(tmp_path / "out" / "heldout")
    assert sorted(kept) == sorted(byte_ids(text) for text in set(documents))
    messages = [run(settings, tmp_path / "ranks", rank=rank, world=2).message for rank in (0, 1, 0)]
    assert "run this rank again then" in messages[0]
    assert files_of(tmp_path / "ranks") == files_of(tmp_path / "out")


@pytest.mark.parametrize("damage", ["", "[]", "7", '"text"', '{"sources"'])
def test_a_damaged_plan_is_written_again(tmp_path: Path, damage: str) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(20)))
    run(settings, tmp_path / "out")
    before = files_of(tmp_path / "out")
    (tmp_path / "out" / "plan.json").write_text(damage)
    run(settings, tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_pairs_become_two_documents_each(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": text, "summary": f"s{i}"} for i, text in enumerate(texts(20))]
    (tmp_path / "data" / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "paths": [f"{tmp_path}/data/0.jsonl"], "target_field": "summary"}
    outcome = run(config(source), tmp_path / "out")
    assert outcome.meta is not None
    assert outcome.meta["pairs"] is True
    assert outcome.meta["train"]["documents"] == 20
    examples = Examples(Shards([tmp_path / "out" / "train"]), 2)
    found = [[part.tolist() for part in examples.get(number)] for number in range(len(examples))]
    assert found == [[byte_ids(row["text"]), byte_ids(row["summary"])] for row in rows]
    both = config(source, write_jsonl(tmp_path / "plain", texts(5)))
    with pytest.raises(
        UserError, match=r"data\.sources\[1\] has no target_field, but data\.sources\[0\] has 'summary'"
    ):
        run(both, tmp_path / "both")


class Recorder(Watcher):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.bytes = self.tokens = 0

    def stage(self, name: str, size: int) -> Any:
        self.stages.append((name, size))
        return self.add

    def add(self, done: int, tokens: int) -> None:
        self.bytes += done
        self.tokens += tokens


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_ends_at_the_size_of_the_corpus(tmp_path: Path, processes: int) -> None:
    settings = config(write_jsonl(tmp_path / "a", texts(50)), write_parquet(tmp_path / "b", texts(50, 1)))
    recorder = Recorder()
    outcome = run(settings, tmp_path / "out", processes=processes, watcher=recorder)
    size = sum(span.size for span in Corpus.training(settings).spans)
    assert recorder.stages == [("tokenizing", size)]
    assert outcome.meta is not None
    assert (recorder.bytes, recorder.tokens) == (size, outcome.meta["train"]["tokens"])


def test_the_command(tmp_path: Path) -> None:
    settings = config(write_jsonl(tmp_path / "data", texts(60)))
    run_config = {"run": {"directory": str(tmp_path / "run")}, "data": settings.model_dump(exclude_defaults=True)}
    (tmp_path / "config.yaml").write_text(json.dumps(run_config))
    out = tmp_path / "out"

    def command(*options: str) -> subprocess.CompletedProcess[str]:
        arguments = ["data", "prepare", str(tmp_path / "config.yaml"), str(out), *options]
        return subprocess.run(
            [sys.executable, "-m", "llmscale", *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    done = command("data.holdout=0.1", "--processes", "2")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "is finished" in done.stdout
    assert len(documents_of(out / "train")) + len(documents_of(out / "heldout")) == 60
    refused = command()
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"llmscale: {out} was prepared with other holdout (0.1, now 0.0)")
    assert refused.stderr.count("\n") == 1


def test_materialise_writes_once_and_again_when_something_changed(tmp_path: Path) -> None:
    documents = [Document(i, 0, 7 * i, text) for i, text in enumerate(["one", "déjà", "", "three"])]
    tokenizer, prefix = BytesTokenizer(), tmp_path / "cache" / "set"
    counts = materialise(iter(documents), tokenizer, prefix, digest="a", files=["texts.jsonl"])
    assert (counts.documents, counts.tokens, counts.bytes) == (4, 18, 14)
    assert documents_of(prefix) == [byte_ids(document.text) for document in documents]
    assert Shards([prefix]).origin(3) == ("texts.jsonl", 21)

    def untouched() -> Any:
        raise AssertionError("read again")
        yield

    assert materialise(untouched(), tokenizer, prefix, digest="a") == counts
    assert materialise(iter(documents[:1]), tokenizer, prefix, digest="b").documents == 1
    assert documents_of(prefix) == [byte_ids("one")]
    Path(f"{prefix}.bin").write_bytes(b"")
    assert materialise(iter(documents[:2]), tokenizer, prefix, digest="b").documents == 2
    assert documents_of(prefix) == [byte_ids("one"), byte_ids("déjà")]
    pairs = [document._replace(target="t") for document in documents]
    assert materialise(pairs, tokenizer, prefix, digest="b", stored=Stored(target=True)).documents == 4
    assert documents_of(prefix)[1::2] == [byte_ids("t")] * 4
    with pytest.raises(ValueError, match="no target, but targets are stored"):
        materialise(documents, tokenizer, prefix, digest="c", stored=Stored(target=True))
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["set.bin", "set.idx", "set.places"]
    assert np.array_equal(IndexedDataset(prefix).tokens[:4], byte_ids("one"))


def test_lanes_do_not_decide_what_is_written(tmp_path: Path) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(400)))
    fewer = data.model_copy(update={"lanes": 3})
    prepare(data, tmp_path / "out")
    prepare(fewer, tmp_path / "fewer")
    assert (tmp_path / "out/train.bin").read_bytes() == (tmp_path / "fewer/train.bin").read_bytes()
    assert prepare(fewer, tmp_path / "out").meta is not None


def test_a_file_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "data", texts(20))
    path = tmp_path / "data" / os.fsdecode(b"a\xff.jsonl")
    path.write_text('not JSON\n{"text": "text"}\n')
    settings = config(source, lanes=1)
    outcome = run(settings, tmp_path / "out")
    assert outcome.meta is not None
    assert (outcome.meta["train"]["documents"], outcome.meta["dropped"]) == (21, {"not JSON": 1})
    assert str(path) in outcome.meta["files"]
    # JSON is UTF-8.
    meta, quarantine = ((tmp_path / "out" / name).read_text("utf-8") for name in ("meta.json", "quarantine.jsonl"))
    assert json.loads(meta) == outcome.meta
    assert json.loads(quarantine)["path"] == str(path)
    assert run(settings, tmp_path / "out").message.startswith(f"{tmp_path / 'out'} is finished already")
