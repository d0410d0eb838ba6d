"""`llmscale parity`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell, warn
from llmscale.config import load_config
from llmscale.layout.text import parse_layout
from llmscale.parity.compare import OPTIMIZERS, Optimizer, Verdict, compare, prepared


def parity(
    path: Path, overrides: Sequence[str], layouts: Sequence[str], steps: int, optimizer: str | None, as_json: bool
) -> bool:
    """Compare layouts with one process, print a row for each, and say whether all are within the tolerance.

    Raises:
        UserError: no layout, an unknown or illegal one, or a config that cannot be trained here.
    """
    if not layouts:
        raise UserError("parity needs --layouts, such as --layouts tp=2 zero=3,dp=2; give at least one")
    config = load_config(path, tuple(overrides), warn)
    chosen: tuple[Optimizer, ...] = OPTIMIZERS
    if optimizer is not None:
        chosen = tuple(name for name in get_args(Optimizer) if name == optimizer)
    wanted = [parse_layout(text) for text in layouts]
    # All of them before the first takes its time.
    for layout in wanted:
        prepared(config, layout, chosen[0], path, clip=0.0)
    verdicts = []
    for verdict in compare(config, wanted, steps=steps, optimizers=chosen, tell=tell):
        verdicts.append(verdict)
        if as_json:
            print(json.dumps(dataclasses.asdict(verdict)), flush=True)
    if not as_json:
        _show(verdicts, f"{path}: {steps} steps beside one process")
    equal = all(verdict.within for verdict in verdicts)
    if not equal and config.model.activation == "relu":
        tell(
            "A ReLU whose input is 0 but for rounding may be on in one layout and off in another. Try"
            " model.activation=gelu, or other values of run.seed: a real difference stays."
        )
    if not equal and config.model.experts is not None:
        tell(
            "A token to which two experts are equal but for rounding may go to one of them in one layout and to the"
            " other in another. Try other values of run.seed: a real difference stays."
        )
    return equal


def _show(verdicts: list[Verdict], title: str) -> None:
    table = Table(title=title)
    for column in (
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
        "",
    ):
        right = column in ("ranks", "loss", "gradient norm", "gradient, first step", "last step")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for each in verdicts:
        table.add_row(
            each.layout,
            str(each.ranks),
            each.optimizer,
            f"{each.loss:.1e}",
            f"{each.norm:.1e}",
            f"{each.gradient:.1e}",
            each.parameter,
            f"{each.last_gradient:.1e}",
            each.last_parameter,
            "same" if each.same_samples else "DIFFER",
            "equal" if each.within else "DIFFERS",
        )
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 140).print(table)
