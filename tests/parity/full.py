"""`make parity-full`: every family in every legal layout of up to eight ranks beside one process, into docs/parity.md.

Hours on two cores. Rows are kept in a file as they come; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from llmscale.parity.compare import GRADIENT_TOLERANCE, OPTIMIZERS, TOLERANCE, Optimizer, compare
from llmscale.parity.layouts import parse_layout
from tests.parity.cases import Case, covering_cases, every_case, family

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
HEAD = (
    "family",
    "layout",
    "ranks",
    "optimizer",
    "loss",
    "gradient norm",
    "gradient, first step",
    "of",
    "last step",
    "of",
    "samples",
    "equal",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("runs/parity.jsonl"), help="where rows are kept meanwhile")
    parser.add_argument("--covering", action="store_true", help="only the few cases that CI runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; ranks often wait")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # rows are kept; threads need not be waited for
    cases = covering_cases() if arguments.covering else every_case()
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = fill(cases, arguments.rows, arguments.jobs)
    order = {case: place for place, case in enumerate(cases)}
    rows = [row for row in rows if (row["family"], row["layout"]) in order]
    rows.sort(key=lambda row: (order[row["family"], row["layout"]], row["optimizer"]))
    arguments.page.write_text(page(rows, len(every_case())))
    sys.exit(0 if all(row["within"] for row in rows) else 1)


def fill(cases: list[Case], path: Path, jobs: int) -> list[dict[str, Any]]:
    """The rows of the file and those of the cases that it lacks, which are also added to it."""
    rows = _kept(path)
    done = {(row["family"], row["layout"], row["optimizer"]) for row in rows}
    names = list(dict.fromkeys(name for name, _ in cases))
    lock = threading.Lock()

    def job(name: str, optimizer: Optimizer) -> None:
        wanted = [text for own, text in cases if own == name and (name, text, optimizer) not in done]
        if not wanted:
            return
        for verdict in compare(family(name), [parse_layout(text) for text in wanted], optimizers=[optimizer]):
            row = {"family": name, **dataclasses.asdict(verdict)}
            with lock, path.open("a") as file:
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                print(f"{len(rows)} of {len(cases) * len(OPTIMIZERS)}: {name} {verdict}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as executor:
        for running in [executor.submit(job, name, optimizer) for name in names for optimizer in OPTIMIZERS]:
            running.result()
    return rows


def _kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def page(rows: list[dict[str, Any]], legal: int) -> str:
    """docs/parity.md."""
    cases = len({(row["family"], row["layout"]) for row in rows})
    within = sum(row["within"] for row in rows)
    lines = [
        "# Layouts beside one process",
        "",
        f"{cases} of the {legal} legal layouts of the twins in `configs/systems/tiny/` on 2, 4 and 8 ranks, five steps"
        f" each with active clipping; {within} of {len(rows)} rows are within the tolerance of fp32:"
        f" {TOLERANCE['fp32']:g}"
        f" relative for losses and gradient norms, {GRADIENT_TOLERANCE['fp32']:g} for a parameter's gradient at the"
        " first step and, under SGD, at the last"
        " ([guide](guide/layouts.md)). Written by `make parity-full`;"
        f" torch {torch.__version__}, {platform.machine()}, gloo.",
        "",
        f"| {' | '.join(HEAD)} |",
        "|" + "---|" * len(HEAD),
    ]
    for row in rows:
        cells = (
            row["family"], row["layout"], row["ranks"], row["optimizer"], f"{row['loss']:.1e}", f"{row['norm']:.1e}",
            f"{row['gradient']:.1e}", f"`{row['parameter']}`", f"{row['last_gradient']:.1e}",
            f"`{row['last_parameter']}`", "same" if row["same_samples"] else "DIFFER",
            "yes" if row["within"] else "NO",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
