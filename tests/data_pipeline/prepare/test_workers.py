"""Loader workers: their mistakes, their death and their parent's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.masked import ROLES, MaskedObjective
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from tests.data_pipeline.corpora import bytes_tokenizer, config, texts, write_files, write_jsonl, write_lines
from tests.data_pipeline.tokenizer.vocabularies import bert_file


def children() -> list[int]:
    """Loader workers of this process; the server from which other tests fork their ranks is none."""
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def open_loader(data: DataConfig, folder: Path) -> TrainLoader:
    return TrainLoader(data, load_tokenizer(bytes_tokenizer(folder)), seed=0, dp_rank=0, dp_size=1)


def take_on(loader: TrainLoader) -> None:
    for _ in range(200):
        loader.take(12)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(
    ("lanes", "dp", "workers", "effective"), [(12, 1, 5, 4), (12, 4, 2, 1), (12, 2, 8, 6), (12, 1, 0, 0)]
)
def test_effective_workers_divide_the_lanes(tmp_path: Path, lanes: int, dp: int, workers: int, effective: int) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(90)), workers=workers, lanes=lanes)
    loader = TrainLoader(data, load_tokenizer(bytes_tokenizer(tmp_path)), seed=0, dp_rank=0, dp_size=dp)
    assert loader.effective_workers == effective
    loader.close()


def test_no_more_workers_than_lanes_and_no_more_than_any_machine_runs(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a", texts(90))
    data = config(source, workers=1024)
    with TrainLoader(data, load_tokenizer(bytes_tokenizer(tmp_path)), seed=0, dp_rank=0, dp_size=1) as loader:
        assert loader.effective_workers == 12
    with pytest.raises(ValueError, match=r"less than or equal to 1024"):
        config(source, workers=1025)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_s_mistake_is_the_user_s_message(tmp_path: Path, workers: int) -> None:
    data = config(write_files(tmp_path / "a", texts(60)), lanes=4, workers=workers)
    loader = open_loader(data, tmp_path)
    victim = tmp_path / "a" / "part0" / "000.txt"
    victim.unlink()
    with pytest.raises(UserError, match=rf"^cannot read {victim}: No such file or directory; repair it or exclude it$"):
        take_on(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_lane_with_too_little_text_is_refused(tmp_path: Path, workers: int) -> None:
    data = config(write_files(tmp_path / "a", ["word"] * 4), lanes=4, workers=workers)
    with pytest.raises(UserError, match=r"lane \d holds only 5 tokens, less than one sample \(32\)"):
        open_loader(data, tmp_path).take(4)


def test_lines_without_any_text_do_not_loop_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + "not json\n" * 100)
    data = config({"kind": "jsonl", "paths": [str(tmp_path / "a.jsonl")]}, lanes=2)
    loader = open_loader(data, tmp_path)
    with pytest.raises(
        UserError, match=r"holds only \d tokens, .* \(reading dropped or repaired \d+ not JSON\); lower"
    ):
        loader.take(2)


def test_documents_that_come_to_no_token_do_not_loop_for_ever(tmp_path: Path) -> None:
    # BERT's normalisation removes a zero-width space.
    tokenizer = {"kind": "wordpiece", "path": str(bert_file(tmp_path / "bert"))}
    data = config(write_lines(tmp_path / "a", ["\u200b"] * 100), lanes=1, tokenizer=tokenizer)
    prepare_tokenizer(data, tmp_path / "tokenizer", roles=ROLES)
    pairs = MaskedObjective(next_sentence=True)
    loader = TrainLoader(data, load_tokenizer(tmp_path / "tokenizer"), objective=pairs, seed=0, dp_rank=0, dp_size=1)
    with pytest.raises(UserError, match="holds only 0 documents"):
        loader.take(2)


def test_a_killed_worker_is_reported(tmp_path: Path) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(90)), workers=2)
    loader = open_loader(data, tmp_path)
    loader.take(12)
    os.kill(children()[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker"):
        take_on(loader)
    loader.close()


def test_close_ends_the_workers_and_signals_to_the_group_do_not(tmp_path: Path) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(90)), workers=2)
    loader = open_loader(data, tmp_path)
    loader.take(12)
    workers = children()
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    for _ in range(30):
        loader.take(12)
    loader.close()
    assert wait_until(lambda: not set(workers) & set(children()), 5)


PARENT = """
import os, sys, time
from pathlib import Path
from tests.data_pipeline.corpora import config, texts, write_jsonl
from tests.data_pipeline.prepare.test_workers import children, open_loader
folder = Path(sys.argv[1])
loader = open_loader(config(write_jsonl(folder / "a", texts(90)), workers=2), folder)
loader.take(12)
print(*children(), flush=True)
time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.stdout.close()
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(_running(pid) for pid in workers), 20)


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_waiting_is_measured(tmp_path: Path) -> None:
    loader = open_loader(config(write_jsonl(tmp_path / "a", texts(90))), tmp_path)
    assert loader.seconds_waited == 0
    start = time.perf_counter()
    loader.take(24)
    assert 0 < loader.seconds_waited < time.perf_counter() - start


def test_workers_share_the_parents_memory(tmp_path: Path) -> None:
    """In a process of its own, whose workers collect garbage at once. A collection that goes through what the parent
    had made would write to all of it, and so copy it."""
    script = """
import gc, os, pathlib, sys
from tests.data_pipeline.corpora import config, texts, write_jsonl
from tests.data_pipeline.prepare.test_workers import children, open_loader, take_on
folder = pathlib.Path(sys.argv[1])
gc.disable()
held = [[number] for number in range(1_000_000)]
os.register_at_fork(after_in_child=gc.enable)
with open_loader(config(write_jsonl(folder / "a", texts(90)), workers=2, lanes=12), folder) as loader:
    take_on(loader)
    for pid in children():
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        print(next(line.split()[1] for line in lines if line.startswith("Private_Dirty")))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    kilobytes = [int(line) for line in done.stdout.split()]
    assert len(kilobytes) == 2
    assert max(kilobytes) < 40_000, kilobytes
