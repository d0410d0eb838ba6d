"""One training step on CPU: this project beside transformers' models and beside the machine's matrix products.

    python -m benchmarks.train_step [--families gpt2 llama bert t5] [--steps 40] [--starts 4] [--only NAME ...]

Every contender is a process of its own; they take single steps in turn. All start anew several times, since where a
process happens to lie in memory changes its speed for good. Contenders named `*_kept` run with
`llmscale.engine.allocator.keep_large_blocks` as the trainer does on CPU; `engine` and `bare` do too. `eager` and
`compiled` run as a user of transformers runs them, without dropout as this project; `eager_dropout` keeps the dropout
of 0.1 that most of transformers' configs have unless told otherwise.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import (
    Shape,
    Step,
    build_bare_step,
    build_engine_step,
    build_gemm_step,
    build_transformers_step,
)
from benchmarks.harness import Contender, Sample, alternate, bar, contender_figures, ratio, report, serve
from llmscale.engine.allocator import keep_large_blocks

THREADS = 2
SHAPES = {family: Shape(family=family) for family in ("gpt2", "llama", "bert", "t5")}
_EAGER = partial(build_transformers_step, compiled=False)
_COMPILED = partial(build_transformers_step, compiled=True)
CONTENDERS = {
    "engine": (build_engine_step, True),
    "bare": (build_bare_step, True),
    "bare_default": (build_bare_step, False),
    "eager": (_EAGER, False),
    "eager_kept": (_EAGER, True),
    "eager_dropout": (partial(build_transformers_step, compiled=False, dropout=0.1), False),
    "compiled": (_COMPILED, False),
    "compiled_kept": (_COMPILED, True),
    "gemm": (build_gemm_step, True),
    "own_gemm": (partial(build_gemm_step, own=True), True),
}
"""Name: how to build the step, and whether freed memory is kept in the process. `gemm` and `own_gemm` are the matrix
products of a step alone, by torch.mm as in transformers, and as this project multiplies (llmscale.model.linear)."""

RATIOS: list[tuple[str, str, str, dict[str, float]]] = [
    ("time of the engine over bare", "engine", "bare", {"at_most": 1.05}),
    ("speed of the engine over transformers eager", "eager", "engine", {"at_least": 1.4}),
    ("speed of bare over transformers compiled", "compiled", "bare", {"at_least": 1.0}),
    ("speed of bare over transformers eager", "eager", "bare", {}),
    ("speed of the engine over transformers eager with its dropout", "eager_dropout", "engine", {}),
    ("speed of the engine over transformers eager, all keep memory", "eager_kept", "engine", {}),
    ("speed of bare over transformers compiled, both keep memory", "compiled_kept", "bare", {}),
    ("speed of bare over transformers eager, both keep memory", "eager_kept", "bare", {}),
    ("speed of bare over transformers compiled, neither keeps memory", "compiled", "bare_default", {}),
    ("speed of bare over transformers eager, neither keeps memory", "eager", "bare_default", {}),
    ("time of transformers eager over its matrix products'", "eager", "gemm", {}),
    ("time of the engine over its matrix products'", "engine", "own_gemm", {}),
    ("speed of this project's matrix products over torch.mm's", "gemm", "own_gemm", {}),
]
"""What is compared, the contender whose time is divided, the one it is divided by, and the bar if there is one."""


def _build(place: str) -> Step:
    family, _, name = place.partition(":")
    build, keep = CONTENDERS[name]
    if keep:
        keep_large_blocks()
    torch.set_num_threads(THREADS)
    return build(SHAPES[family])


def _measure(family: str, names: list[str], steps: int, warmup: int, starts: int) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for start in range(starts):
        contenders: list[Contender] = []
        try:
            for name in names:
                print(f"{family}, start {start + 1} of {starts}: {name}", file=sys.stderr)
                command = [sys.executable, "-m", "benchmarks.train_step", "--serve", f"{family}:{name}"]
                contenders.append(Contender(name, command, env={"OMP_NUM_THREADS": str(THREADS)}))
                contenders[-1].step(record=False)
            alternate(contenders, warmup=warmup, steps=steps * (start + 1) // starts - steps * start // starts)
        finally:
            for contender in contenders:
                contender.close()
        for contender in contenders:
            samples[contender.name] += contender.samples
    return samples


def _compare(family: str, contenders: dict[str, list[Sample]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A family's figures with ratios as [value, low, high], and the bars; each ratio by both clocks."""
    shape = SHAPES[family]
    figures: dict[str, Any] = {"shape": asdict(shape)}
    for name, contender in contenders.items():
        figures[name] = contender_figures(contender, shape.tokens_per_step, shape.flops)
    figures["ratios"] = {}
    bars: list[dict[str, Any]] = []
    for name, over, under, limit in RATIOS:
        if over in contenders and under in contenders:
            for clock in ("wall", "cpu"):
                measured = ratio(contenders[over], contenders[under], clock)
                figures["ratios"][f"{name} ({clock})"] = measured.rounded()
                if limit:
                    bars.append(bar(f"{family}: {name} ({clock})", measured, **limit))
    return figures, bars


def main() -> None:
    """Run as a program; with --serve, be one contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="+", choices=SHAPES, default=list(SHAPES), help="models to train")
    parser.add_argument("--steps", type=int, default=40, help="recorded steps of each contender")
    parser.add_argument("--warmup", type=int, default=3, help="steps after each start that are not recorded")
    parser.add_argument("--starts", type=int, default=4, help="processes of each contender, one after the other")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders to run")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(partial(_build, arguments.serve))
        return
    figures: dict[str, Any] = {"threads": THREADS}
    bars: list[dict[str, Any]] = []
    for family in arguments.families:
        measured = _measure(family, arguments.only, arguments.steps, arguments.warmup, arguments.starts)
        figures[family], of_family = _compare(family, measured)
        bars += of_family
    report("train_step", figures, bars)


if __name__ == "__main__":
    main()
