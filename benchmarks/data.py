"""The data pipeline beside its limits and its peers: tokens per second, resumes, memory, and its share of training.

    python -m benchmarks.data [--text FILE ...] [--gpt2 FOLDER] [--t5 MODEL] [--only NAME ...] [--size 32]

All on the same text with the same tokenizers. Contenders for throughput are processes of one thread on one core that
take steps in turn; rates are medians over the steps, with a 95 % bootstrap interval. Without --text the documents are
the standard library's own sources; without tokenizers small ones are trained.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data_contenders import FASTEST, build, pin
from benchmarks.data_processes import (
    ROOT,
    environment,
    prepare_seconds,
    quickstart_shares,
    run_alone,
    short_quickstart,
)
from benchmarks.data_setup import OBJECTIVES, Setup, log, prepare_setup, write_indexed
from benchmarks.harness import Contender, Ratio, Sample, bar, report, serve

TOKENIZERS = ("gpt2", "t5")
RARELY = 5
"""Transformers' recipe takes one step in so many rounds, since each takes longer than all others' together."""


@dataclass
class Results:
    """What the measurements add to the report."""

    figures: dict[str, Any] = field(default_factory=dict)
    bars: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, measured: Ratio, **limit: float) -> None:
        """A bar."""
        self.bars.append(bar(name, measured, **limit))
        log(f"{name}: {measured.rounded()} ({self.bars[-1]['bar']})")


@dataclass
class Options:
    """What the command line says besides the texts."""

    repeats: int
    streaming_python: str | None
    quickstart: str | None
    quickstart_steps: int


def estimate(values: Sequence[float], draws: int = 2000) -> Ratio:
    """The median, with a 95 % interval by a percentile bootstrap (Efron and Tibshirani 1993, section 13.3)."""
    choices = random.Random(1).choices
    drawn = sorted(statistics.median(choices(values, k=len(values))) for _ in range(draws))
    return Ratio(statistics.median(values), drawn[int(0.025 * draws)], drawn[int(0.975 * draws) - 1])


def compare(values: Sequence[float], over: Sequence[float]) -> Ratio:
    """How many times as large `values` are as those of `over` from the same rounds: the estimate of the quotients.

    Where `over` took fewer rounds, of the quotients with its median: it is the more even one then.
    """
    if len(values) == len(over):
        return estimate([value / other for value, other in zip(values, over, strict=True)])
    return estimate([value / statistics.median(over) for value in values])


def rates(samples: Sequence[Sample]) -> list[float]:
    """What each step went through in a second."""
    return [sample.value / sample.wall for sample in samples]


def compete(
    setup: Setup, names: Sequence[str], repeats: int, commands: dict[str, list[str]]
) -> dict[str, list[Sample]]:
    """Let contenders take single steps in turn, each round in a new order; the first step of each is not recorded.

    Args:
        setup: is what they are built from.
        names: of CONTENDERS or `commands`.
        repeats: recorded steps; one in RARELY of them for transformers' recipe.
        commands: contenders that are other programs.
    """
    contenders: list[Contender] = []
    try:
        for name in names:
            own = [sys.executable, "-m", "benchmarks.data", "--serve", name, setup.scratch]
            contenders.append(Contender(name, commands.get(name, own), env=environment()))
            contenders[-1].step(record=False)
        for turn in range(repeats):
            for contender in random.Random(turn).sample(contenders, len(contenders)):
                if turn % RARELY == 0 or not contender.name.endswith("recipe"):
                    contender.step()
    finally:
        for contender in contenders:
            contender.close()
    for contender in contenders:
        log(f"{contender.name}: {estimate(rates(contender.samples)).value:,.0f} a second")
    return {contender.name: contender.samples for contender in contenders}


def describe(samples: dict[str, list[Sample]], unit: str) -> dict[str, Any]:
    """Figures of contenders: rate with its interval, and the processor's seconds for each second of the clock."""
    return {
        name: {
            f"{unit}_per_second": [round(rate) for rate in vars(estimate(rates(steps))).values()],
            "cores": round(sum(step.cpu for step in steps) / sum(step.wall for step in steps), 2),
            "steps": len(steps),
        }
        for name, steps in samples.items()
    }


def measure_stream(setup: Setup, options: Options, results: Results) -> None:
    """JSON lines to batches, for every objective, against bare encoding, transformers' recipe and a plain loop."""
    for tokenizer in TOKENIZERS:
        limits = [("bare batch encode", f"{tokenizer}/bare")]
        if tokenizer == "gpt2":
            limits.append(("bare encode by tiktoken", f"{FASTEST}/bare"))
        names = [*(name for _, name in limits), *(f"{tokenizer}/{name}" for name in ("recipe", "loop", *OBJECTIVES))]
        samples = compete(setup, names, options.repeats, {})
        results.figures |= describe(samples, "tokens")
        of = {name: rates(steps) for name, steps in samples.items()}
        for words, peer, least in (
            *((words, name, 0.9) for words, name in limits),
            ("transformers' run_clm recipe", f"{tokenizer}/recipe", 4.0),
            ("a loop over datasets streaming", f"{tokenizer}/loop", 1.0),
        ):
            name = f"{tokenizer}: JSON lines to causal batches over {words}"
            results.add(name, compare(of[f"{tokenizer}/causal"], of[peer]), at_least=least)
        for objective, words in (("masked", "masked LM"), ("denoising", "span corruption")):
            for limit, peer in limits:
                name = f"{tokenizer}: JSON lines to {words} batches over {limit}"
                results.add(name, compare(of[f"{tokenizer}/{objective}"], of[peer]), at_least=0.8)


def measure_indexed(setup: Setup, options: Options, results: Results) -> None:
    """Shuffled windows of a .bin file, against a bare gather and mosaicml-streaming."""
    write_indexed(setup)
    python = options.streaming_python or sys.executable
    check = [python, "-m", "benchmarks.data_streaming", "--check"]
    there = subprocess.run(check, check=False, capture_output=True, text=True, cwd=ROOT, env=environment())
    commands = {"streaming": [python, "-m", "benchmarks.data_streaming", setup.scratch]}
    names = ["indexed", "gather", "tuned gather", *commands][: 3 + (there.returncode == 0)]
    samples = compete(setup, names, options.repeats, commands)
    results.figures |= describe(samples, "tokens")
    own = rates(samples["indexed"])
    gathers = {name: compare(own, rates(samples[name])) for name in ("gather", "tuned gather")}
    results.add(".bin/.idx through the loader over a bare memmap gather", gathers["gather"], at_least=0.6)
    results.figures["over_tuned_gather"] = gathers["tuned gather"].rounded()
    name = ".bin/.idx through the loader over mosaicml-streaming"
    if "streaming" in samples:
        results.add(name, compare(own, rates(samples["streaming"])), at_least=15.0)
        results.figures["streaming"]["version"] = there.stdout.strip()
        return
    results.bars.append({"name": name, "value": None, "interval": None, "bar": ">= 15.0", "met": False})
    reason = (there.stderr.strip().splitlines() or ["no reason given"])[-1]
    results.figures["notes"] = [f"mosaicml-streaming was not measured: {python} cannot import it ({reason})"]


def measure_reading(setup: Setup, options: Options, results: Results) -> None:
    """JSON lines to documents, and opening a large file anywhere."""
    samples = compete(setup, ["reading", "bare reading"], -(-options.repeats // 2), {})
    results.figures |= describe(samples, "documents")
    ratio = compare(rates(samples["reading"]), rates(samples["bare reading"]))
    results.add("JSON lines to documents over a bare orjson loop", ratio, at_least=0.8)
    opened = compete(setup, ["opening"], 5 * options.repeats, {})["opening"]
    milliseconds = [1000 * sample.value for sample in opened]
    size = round(Path(setup.big).stat().st_size / 1e6)
    results.figures["opening"] = {"median_milliseconds": round(statistics.median(milliseconds), 2), "megabytes": size}
    worst = max(milliseconds)
    name = f"slowest opening of a file of {size} MB at {len(opened)} random places, milliseconds"
    results.add(name, Ratio(worst, worst, worst), at_most=50.0)


def measure_resume(setup: Setup, options: Options, results: Results) -> None:
    """Time to the first batch: early and late in a run, and of a new one."""
    log(f"making {setup.resumes[1]:,} samples")
    found = run_alone("resume", setup)
    early, late = (found[str(samples)] for samples in setup.resumes)
    results.figures["resume"] = {
        "seconds": {str(samples): round(statistics.median(found[str(samples)]), 4) for samples in setup.resumes},
        "epochs_of_lanes": found["epochs"],
    }
    name = "resume after {:,} samples over resume after {:,}".format(*reversed(setup.resumes))
    results.add(name, compare(late, early), at_most=1.5)
    runs = [run_alone("first batch", setup) for _ in range(3)]
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    results.figures["first_batch"] = {name: round(statistics.median(times), 3) for name, times in columns.items()}
    name = f"first batch ({setup.first_batch} x {setup.sequence} tokens) of a new or resumed run at most, seconds"
    slowest = max(columns["seconds"] + columns["resume_seconds"])
    results.add(name, Ratio(slowest, slowest, slowest), at_most=10.0)


def measure_memory(setup: Setup, options: Options, results: Results) -> None:
    """Memory of the loader with 2 workers at the default lanes."""
    one, ten = (run_alone(name, setup) for name in ("memory", "memory of ten files"))
    results.figures["memory"] = {
        name: {kind: round(value, 1) for kind, value in found.items()}
        for name, found in (("one file", one), ("ten files", ten))
    }
    most = max(one["pss"], one["pss_later"], ten["pss"])
    results.add("memory of the loader with 2 workers, MB beyond imports", Ratio(most, most, most), at_most=500.0)
    for name, more, less in (
        ("ten times the files", ten["pss"], one["pss"]),
        ("ten times the samples", one["pss_later"], one["pss"]),
    ):
        grown = more - less
        results.add(f"growth of that memory over {name}, MB", Ratio(grown, grown, grown), at_most=50.0)


def measure_prepare(setup: Setup, options: Options, results: Results) -> None:
    """The command `llmscale data prepare` on two processes against one; and what two processes could gain at most."""
    times: dict[int, list[float]] = {1: [], 2: []}
    turns = max(1, options.repeats // 6)
    for turn in range(turns):
        for processes in random.Random(turn).sample([1, 2], 2):
            log(f"data prepare on {processes} processes, {turn + 1} of {turns}")
            times[processes].append(prepare_seconds(setup, processes))
    results.figures["prepare"] = {
        **{f"seconds_on_{count}": round(statistics.median(seconds), 2) for count, seconds in times.items()},
        "two bare encoders at once over one": round(two_at_once(setup), 2),
    }
    results.add("data prepare: speed of 2 processes over 1", compare(times[1], times[2]), at_least=1.7)


def two_at_once(setup: Setup) -> float:
    """Work that two processes of bare encoding do together, over what one does alone: 2 on two idle cores."""
    pair = [
        Contender(
            name, [sys.executable, "-m", "benchmarks.data", "--serve", name, setup.scratch, "--free"], environment()
        )
        for name in (f"{FASTEST}/bare", f"{FASTEST}/bare")
    ]
    try:
        for contender in pair:
            contender.step(record=False)
        alone = [pair[0].step() for _ in range(3)]
        together: list[float] = []
        for _ in range(3):
            started = time.perf_counter()
            with ThreadPoolExecutor(len(pair)) as threads:
                done = sum(sample.value for sample in threads.map(Contender.step, pair))
            together.append(done / (time.perf_counter() - started))
    finally:
        for contender in pair:
            contender.close()
    return statistics.median(together) / statistics.median(rates(alone))


def measure_quickstart(setup: Setup, options: Options, results: Results) -> None:
    """The loader's share of a training step."""
    run = Path(options.quickstart) if options.quickstart else None
    shares = quickstart_shares(run or short_quickstart(Path(setup.scratch), options.quickstart_steps))
    results.figures["quickstart"] = {"rows": len(shares), "largest_percent": round(100 * max(shares), 3)}
    percent = [100 * share for share in shares]
    results.add("loader's share of a training step of the quickstart, percent", estimate(percent), at_most=1.0)


MEASUREMENTS: dict[str, Callable[[Setup, Options, Results], None]] = {
    "stream": measure_stream,
    "indexed": measure_indexed,
    "reading": measure_reading,
    "resume": measure_resume,
    "memory": measure_memory,
    "prepare": measure_prepare,
    "quickstart": measure_quickstart,
}


def _measure(arguments: argparse.Namespace) -> Results:
    results = Results()
    options = Options(arguments.repeats, arguments.streaming_python, arguments.quickstart, arguments.quickstart_steps)
    cache = Path(arguments.cache).expanduser()
    with tempfile.TemporaryDirectory(prefix="llmscale-benchmark-") as scratch:
        started = time.perf_counter()
        setup = prepare_setup(Path(scratch), arguments.size, arguments.text, arguments.gpt2, arguments.t5, cache)
        results.figures = {
            "size_megabytes": arguments.size,
            "sequence_length": setup.sequence,
            "batch": setup.batch,
            "lanes": {"throughput": setup.lanes, "else": setup.all_lanes},
            "versions": {name: version(name) for name in ("tokenizers", "sentencepiece", "datasets", "numpy")},
        }
        for name in arguments.only:
            MEASUREMENTS[name](setup, options, results)
            log(f"-- {name} finished after {time.perf_counter() - started:.0f} s")
    return results


def main() -> None:
    """Run as a program; with --serve, be one contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", nargs="+", default=[], help="JSON-lines files with a field `text`")
    parser.add_argument("--gpt2", help="folder with tokenizer.json, or with a byte-level BPE's vocabulary and merges")
    parser.add_argument("--t5", help="SentencePiece model")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="what to measure")
    parser.add_argument("--repeats", type=int, default=16, help="recorded steps of most contenders")
    parser.add_argument("--size", type=float, default=32, help="megabytes of text; all work is in proportion")
    parser.add_argument("--streaming-python", help="interpreter that can import mosaicml-streaming")
    parser.add_argument("--quickstart", help="run directory of the quickstart; else a short run is trained")
    parser.add_argument("--quickstart-steps", type=int, default=20, help="steps of that short run")
    parser.add_argument("--cache", default="~/.cache/llmscale/benchmarks", help="where trained tokenizers are kept")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "SCRATCH"), help=argparse.SUPPRESS)
    parser.add_argument("--free", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, scratch = arguments.serve
        if not arguments.free:
            pin()
        serve(partial(build, Setup.load(scratch), name))
        return
    # So that the scratch folder goes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = _measure(arguments)
    report("data", results.figures, results.bars)


if __name__ == "__main__":
    main()
