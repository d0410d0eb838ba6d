"""What the benchmarks share: contenders in processes of their own, robust ratios, the closing JSON line."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """The machine and the versions that a figure belongs to."""
    cpu = platform.processor() or "unknown"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), cpu)
    about = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "deepspeed")},
    }
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


@dataclass
class Sample:
    """One step of one contender."""

    wall: float
    """Seconds of the clock on the wall."""
    cpu: float
    """Seconds of all the process's threads together."""
    value: float
    """What the step returned: the loss."""


class Contender:
    """A process that runs one step whenever it is told to, so that no contender sees another's patches or memory."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self.samples: list[Sample] = []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, **(env or {})},
        )

    def step(self, *, record: bool = True) -> Sample:
        """Run one step and wait for it.

        Raises:
            RuntimeError: the process ended instead of answering.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"contender '{self.name}' ended with code {self._process.wait()}; its error is above")
        sample = Sample(**json.loads(line))
        if record:
            self.samples.append(sample)
        return sample

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None and self._process.poll() is None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(build: Callable[[], Callable[[], float]]) -> None:
    """The other side of `Contender`: build the step, then run it for each line read from stdin.

    Whatever the step itself prints goes to stderr.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    step = build()
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        value = step()
        sample = Sample(time.perf_counter() - wall, time.process_time() - cpu, value)
        print(json.dumps(vars(sample)), file=answers, flush=True)


def alternate(contenders: Sequence[Contender], *, warmup: int, steps: int) -> None:
    """Let the contenders take single steps in turn; each round in a new order, the first `warmup` unrecorded."""
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    for index in range(warmup + steps):
        shuffle(order)
        for contender in order:
            contender.step(record=index >= warmup)
        done = index + 1 - warmup
        if done > 0 and done % 10 == 0:
            times = (f"{c.name} {percentile([sample.wall for sample in c.samples]):.3f}" for c in contenders)
            print(f"{done}/{steps} steps; 20th percentile in seconds: {', '.join(times)}", file=sys.stderr)


def percentile(values: Sequence[float], fraction: float = 0.2) -> float:
    """The value below which `fraction` of the values lie: a machine's neighbours can only make a step slower."""
    return sorted(values)[int(fraction * (len(values) - 1))]


@dataclass
class Ratio:
    """How two contenders' times compare: 20th percentile over 20th percentile, and its 95 % interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> list[float]:
        return [round(number, 3) for number in (self.value, self.low, self.high)]


def ratio(over: Sequence[Sample], under: Sequence[Sample], clock: str, draws: int = 2000) -> Ratio:
    """Time of `over` divided by that of `under` by the clock "wall" or "cpu".

    The interval is a percentile bootstrap (Efron and Tibshirani 1993, section 13.3) that draws whole rounds.
    """
    pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(over, under, strict=True)]

    def of(rounds: Sequence[tuple[float, float]]) -> float:
        return percentile([a for a, _ in rounds]) / percentile([b for _, b in rounds])

    choose = random.Random(1).choices
    resampled = sorted(of(choose(pairs, k=len(pairs))) for _ in range(draws))
    return Ratio(of(pairs), resampled[int(0.025 * draws)], resampled[int(0.975 * draws) - 1])


def bar(name: str, measured: Ratio, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """A row of the report. It is met when the interval's end on the side of the bar meets it."""
    met = measured.low >= at_least if at_least is not None else at_most is not None and measured.high <= at_most
    text = f">= {at_least}" if at_least is not None else f"<= {at_most}"
    value, low, high = measured.rounded()
    return {"name": name, "value": value, "interval": [low, high], "bar": text, "met": met}


def contender_figures(samples: Sequence[Sample], tokens: int, flops: int) -> dict[str, Any]:
    """What one contender did in steps of `tokens` tokens and `flops` operations in matrix products."""
    wall = percentile([sample.wall for sample in samples])
    return {
        "steps": len(samples),
        "wall_seconds": round(wall, 5),
        "cpu_seconds": round(percentile([sample.cpu for sample in samples]), 5),
        "tokens_per_second": round(tokens / wall),
        "gflops": round(flops / wall / 1e9),
        "last_loss": round(samples[-1].value, 4),
    }


def report(benchmark: str, figures: dict[str, Any], bars: list[dict[str, Any]]) -> None:
    """Print the closing JSON line on stdout."""
    print(json.dumps({"benchmark": benchmark, "machine": machine(), "figures": figures, "bars": bars}))
