"""The figures of the data benchmark that need a process or a command of their own: resumes, memory, `prepare`.

`python -m benchmarks.data_processes NAME SCRATCH` measures one and prints it as a JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.data_setup import Setup, log
from data_pipeline.base.records import read_records
from data_pipeline.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SEED = 1
RESUMES = 21
"""Times that each resume is timed."""


def run_alone(name: str, setup: Setup) -> dict[str, Any]:
    """What a function of `MEASURES` returns in a new process, with the seconds of the whole process."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.data_processes", name, setup.scratch]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    return {**json.loads(done.stdout), "process_seconds": time.perf_counter() - started}


def environment() -> dict[str, str]:
    """Of every process that measures: one thread, and no network."""
    alone = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **alone, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def first_batch(setup: Setup) -> dict[str, float]:
    """Seconds to the first batch of the large file at the default lanes, on one core without workers: of a new run,
    and of one that goes on behind that batch."""
    from data_pipeline.loader import TrainLoader

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    data = setup.data([setup.big], "gpt2")
    started = time.perf_counter()
    loader = TrainLoader(data, load_tokenizer(setup.tokenizer_dir("gpt2")), seed=SEED, dp_rank=0, dp_size=1)
    loader.take(setup.first_batch)
    seconds = time.perf_counter() - started
    cursor = json.loads(json.dumps(loader.cursor()))
    loader.close()
    del loader
    started = time.perf_counter()
    loader = TrainLoader(
        data,
        load_tokenizer(setup.tokenizer_dir("gpt2")),
        seed=SEED,
        dp_rank=0,
        dp_size=1,
        first_sample=setup.first_batch,
        cursor=cursor,
    )
    loader.take(setup.first_batch)
    return {"seconds": seconds, "resume_seconds": time.perf_counter() - started}


def resume(setup: Setup) -> dict[str, list[float]]:
    """Seconds from a cursor to the first batch, at the default lanes, in turn for each of `setup.resumes`."""
    from data_pipeline.loader import TrainLoader

    data = setup.data([setup.wrapping], "bytes", sequence_length=setup.short_sequence)
    folder = setup.tokenizer_dir("bytes")
    loader = TrainLoader(data, load_tokenizer(folder), seed=SEED, dp_rank=0, dp_size=1)
    cursors: dict[int, dict[str, Any]] = {}
    for samples in setup.resumes:
        reached = max(cursors, default=0)
        while reached < samples:
            count = min(data.lanes, samples - reached)
            loader.take(count)
            reached += count
        cursors[samples] = json.loads(json.dumps(loader.cursor()))
    expected = loader.take(data.lanes)[1]
    loader.close()
    times: dict[str, list[float]] = {str(samples): [] for samples in cursors}
    for turn in range(RESUMES):
        for samples, cursor in random.Random(turn).sample(sorted(cursors.items()), len(cursors)):
            # A full collection takes as long as a resume and would come at every other one.
            gc.collect()
            started = time.perf_counter()
            resumed = TrainLoader(
                data, load_tokenizer(folder), seed=SEED, dp_rank=0, dp_size=1, first_sample=samples, cursor=cursor
            )
            found = resumed.take(data.lanes)[1]
            times[str(samples)].append(time.perf_counter() - started)
            resumed.close()
            assert samples != max(cursors) or found == expected
    epochs = [state[1] for states in cursors[max(cursors)]["lanes"].values() for state in states]
    return {**times, "epochs": [min(epochs), max(epochs)]}


def memory(setup: Setup, paths: list[str], rounds: dict[str, int]) -> dict[str, float]:
    """Megabytes of the loader and its two workers beyond the imports, at the default lanes.

    Args:
        setup: the benchmark's.
        paths: files to read.
        rounds: when to look, in samples of every lane, by what is put behind the names of the figures.

    Returns:
        pss, the proportional set size, where shared pages count once; and rss, the sum of the resident sets.
    """
    from data_pipeline.loader import TrainLoader

    import_libraries()
    before = _megabytes([os.getpid()])
    data = setup.data(paths, "gpt2", workers=2)
    with TrainLoader(data, load_tokenizer(setup.tokenizer_dir("gpt2")), seed=SEED, dp_rank=0, dp_size=1) as loader:
        found: dict[str, float] = {}
        taken = 0
        for name, until in rounds.items():
            while taken < until * data.lanes:
                loader.take(setup.batch)
                taken += setup.batch
            now = _megabytes([os.getpid(), *_children()])
            found |= {f"{kind}{name}": now[kind] - before[kind] for kind in now}
    return found


def import_libraries() -> None:
    """What opening and using the loader imports, so that its memory can be told from theirs."""
    import orjson  # noqa: F401
    import pyarrow  # noqa: F401
    import tokenizers  # noqa: F401


def _children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def _megabytes(pids: list[int]) -> dict[str, float]:
    total = {"pss": 0.0, "rss": 0.0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.lower() in total:
                total[name.lower()] += int(rest.split()[0]) * 1024 / 1e6
    return total


def prepare_seconds(setup: Setup, processes: int) -> float:
    """Seconds of the command `llmscale data prepare` on the text."""
    out = Path(setup.scratch) / "prepared"
    config = Path(setup.scratch) / "prepare.yaml"
    data = setup.data([setup.big], "gpt2").model_dump(exclude_defaults=True)
    config.write_text(yaml.safe_dump({"run": {"directory": "unused"}, "data": data}))
    command = [sys.executable, "-m", "llmscale", "data", "prepare", str(config), str(out)]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--processes", str(processes)], check=True, cwd=ROOT, env=environment(), capture_output=True
    )
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def quickstart_shares(run: Path) -> list[float]:
    """The loader's share of the step in every row of a run's metrics but the first, which holds the start."""
    rows = [row for row in read_records(run / "metrics.jsonl") if "data_seconds" in row]
    return [row["data_seconds"] / row["step_seconds"] for row in rows[1:]]


def short_quickstart(scratch: Path, steps: int) -> Path:
    """A run of the quickstart's config, cut short."""
    run = scratch / "quickstart"
    log(f"training {steps} steps of {QUICKSTART.name}")
    settings = {
        "run.directory": run,
        "train.steps": steps,
        "schedule.warmup_steps": 1,
        "schedule.decay_steps": 1,
        "evaluation.interval": steps + 1,
        "evaluation.max_samples": 8,
        "evaluation.baselines": "false",
        "checkpoint.interval": steps + 1,
        "logging.interval": 5,
    }
    overrides = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "llmscale", "train", str(QUICKSTART), *overrides]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return run


MEASURES: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "first batch": first_batch,
    "resume": resume,
    "memory": lambda setup: memory(setup, [setup.big], {"": setup.memory_rounds, "_later": 10 * setup.memory_rounds}),
    "memory of ten files": lambda setup: memory(setup, setup.copies, {"": setup.memory_rounds}),
}


def main() -> None:
    """Run as a program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=MEASURES)
    parser.add_argument("scratch")
    arguments = parser.parse_args()
    print(json.dumps(MEASURES[arguments.name](Setup.load(arguments.scratch))))


if __name__ == "__main__":
    main()
