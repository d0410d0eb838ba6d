"""`make parity-full`: every family in every legal layout of up to eight ranks beside one process, into docs/parity.md.

More than an hour on two cores. Rows are written as they come, and not computed again: a run that was stopped goes on
where it was. Delete the page to begin anew.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from llmscale.layout.text import parse_layout
from llmscale.parity.compare import GRADIENT_TOLERANCE, OPTIMIZERS, TOLERANCE, Optimizer, Verdict, compare
from tests.parity.cases import Case, covering_cases, every_case, family

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
HEAD = (
    "family", "layout", "optimizer", "ranks", "loss", "gradient norm", "gradient, first step", "of", "last step", "of",
    "samples", "equal",
)  # fmt: skip
NAMES = len(("family", "layout", "optimizer"))
"""Columns that say which row it is."""

Row = tuple[str, ...]
"""The cells of a row of the table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--covering", action="store_true", help="only the few cases that CI runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; ranks often wait")
    parser.add_argument("--page", type=Path, default=PAGE, help="the table, with the rows that there are")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # rows are kept; threads need not be waited for
    table = Table(arguments.page)
    fill(table, covering_cases() if arguments.covering else every_case(), arguments.jobs)
    sys.exit(0 if all(row[-1] == "yes" for row in table.rows.values()) else 1)


class Table:
    """docs/parity.md, by what the rows are of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._order: dict[Row, int] = {(name, text): number for number, (name, text) in enumerate(every_case())}
        lines = path.read_text().splitlines() if path.exists() else []
        cells = [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in lines if line.startswith("| ")]
        found = {row[:NAMES]: row for row in cells if row != HEAD}
        self.rows: dict[Row, Row] = {key: row for key, row in found.items() if key[:2] in self._order}
        self._lock = threading.Lock()

    def add(self, name: str, verdict: Verdict) -> None:
        """Write the page anew with one row more."""
        cells = (
            name, verdict.layout, verdict.optimizer, str(verdict.ranks), f"{verdict.loss:.1e}", f"{verdict.norm:.1e}",
            f"{verdict.gradient:.1e}", f"`{verdict.parameter}`", f"{verdict.last_gradient:.1e}",
            f"`{verdict.last_parameter}`", "same" if verdict.same_samples else "DIFFER",
            "yes" if verdict.within else "NO",
        )  # fmt: skip
        with self._lock:
            self.rows[cells[:NAMES]] = cells
            self.path.write_text(self._page())
            print(
                f"{len(self.rows)} of {len(self._order) * len(OPTIMIZERS)}: {' '.join(cells)}",
                file=sys.stderr,
                flush=True,
            )

    def _page(self) -> str:
        rows = sorted(self.rows.values(), key=lambda row: (self._order[row[:2]], row[2]))
        cases = len({row[:2] for row in rows})
        within = sum(row[-1] == "yes" for row in rows)
        lines = [
            "# Layouts beside one process",
            "",
            f"{cases} of the {len(self._order)} legal layouts of the twins in `configs/systems/tiny/` on 2, 4 and 8"
            f" ranks, five steps each with active clipping; {within} of {len(rows)} rows are within the tolerance of"
            f" fp32: {TOLERANCE['fp32']:g} relative for losses and gradient norms, {GRADIENT_TOLERANCE['fp32']:g} for"
            " a parameter's gradient at the first step and, under SGD, at the last ([guide](guide/layouts.md))."
            " A unit of a ReLU that one layout has on and another off changes a gradient at the one step where rounding"
            " decides about it ([log](log.md))."
            f" Written by `make parity-full`; torch {torch.__version__}, {platform.machine()}, gloo.",
            "",
            f"| {' | '.join(HEAD)} |",
            "|" + "---|" * len(HEAD),
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
        return "\n".join(lines) + "\n"


def fill(table: Table, cases: list[Case], jobs: int) -> None:
    """Add the rows of these cases that are not there yet."""

    def job(name: str, optimizer: Optimizer) -> None:
        texts = [text for own, text in cases if own == name and (name, text, optimizer) not in table.rows]
        if texts:
            for verdict in compare(family(name), [parse_layout(text) for text in texts], optimizers=[optimizer]):
                table.add(name, verdict)

    names = list(dict.fromkeys(name for name, _ in cases))
    with ThreadPoolExecutor(jobs) as executor:
        for running in [executor.submit(job, name, optimizer) for name in names for optimizer in OPTIMIZERS]:
            running.result()


if __name__ == "__main__":
    main()
