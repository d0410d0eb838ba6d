"""Layouts beside one process: what differs by how much."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, parse_config
from llmscale.config.optimizers import optimizer_kind
from llmscale.layout.text import LayoutText, parse_layout
from llmscale.parity.job import Figures, run_layout
from llmscale.parity.ranks import run_ranks

Optimizer = Literal["sgd", "adamw"]
OPTIMIZERS: tuple[Optimizer, ...] = ("sgd", "adamw")
"""sgd: shows errors of the gradient's scale. adamw: hides them, but is what most runs use."""
SETTINGS: dict[Optimizer, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
    "adamw": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
}
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}
"""By arithmetic: relative, of losses and gradient norms."""
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-1, "fp16": 2e-1}
"""By arithmetic: of a parameter's gradient, as `llmscale.parity.job.gradient_difference` measures it. Held at the first
step, whose weights are the same in all layouts, and under SGD at the last. Under AdamW that one is shown only: where a
gradient is about 0, rounding decides which way AdamW moves a weight, and a ReLU may then be on in one layout and off in
the other (docs/log.md has the measurement)."""


ALONE = parse_layout("dp=1,cp=1,tp=1,pp=1,ep=1,sequence_parallel=false,zero=1")
"""One process."""


@dataclass(frozen=True)
class Verdict:
    """How far a layout is from one process."""

    layout: str
    ranks: int
    optimizer: Optimizer
    loss: float
    """Largest relative difference of a term of the loss."""
    norm: float
    """Largest relative difference of the gradient's norm."""
    gradient: float
    """Largest difference of a parameter's gradient at the first step."""
    parameter: str
    """Which one that is."""
    last_gradient: float
    """The same at the last step."""
    last_parameter: str
    same_samples: bool
    """Every step was trained on the same samples."""
    within: bool
    """All of this is within the tolerance."""


def compare(
    config: RunConfig,
    layouts: Sequence[LayoutText],
    *,
    steps: int = 5,
    optimizers: Sequence[Optimizer] = OPTIMIZERS,
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[Verdict]:
    """Train `steps` steps in one process and in each layout, and compare.

    Args:
        config: of a model that this machine can train; its data, objective and sizes are used, with the optimizers of
            `SETTINGS` at a constant rate, and clipping to a tenth of the first gradient's norm.
        layouts: legal for the config.
        tell: called with a sentence before each run.

    Yields:
        A verdict for each optimizer and layout.

    Raises:
        UserError: the config cannot be trained here.
        RuntimeError: a rank fails, with its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="llmscale-parity-") as folder:
        for optimizer in optimizers:
            gradients = Path(folder) / optimizer
            gradients.mkdir()
            tell(f"{optimizer}: one process")
            reference = _reference(config, optimizer, steps, gradients)
            for number, layout in enumerate(layouts):
                tell(f"{optimizer}: {layout.text} on {layout.ranks} rank(s)")
                job = prepared(config, layout, optimizer, gradients / f"run-{number}", reference.clip)
                _adopt(gradients / "one", Path(job.run.directory))
                found = run_ranks(layout.ranks, run_layout, job, steps, gradients, False)[0]
                yield _judge(layout, optimizer, reference.figures, found, _arithmetic(job))


@dataclass(frozen=True)
class _Reference:
    figures: Figures
    clip: float


def _reference(config: RunConfig, optimizer: Optimizer, steps: int, gradients: Path) -> _Reference:
    """One process; clipping is to a tenth of the norm of its first gradient, so that it is active."""
    probe = prepared(config, ALONE, optimizer, gradients / "probe", clip=0.0)
    clip = float(f"{run_ranks(1, run_layout, probe, 1, gradients, True)[0].norms[0] / 10:.2g}")
    job = prepared(config, ALONE, optimizer, gradients / "one", clip)
    _adopt(Path(probe.run.directory), Path(job.run.directory))
    figures = run_ranks(1, run_layout, job, steps, gradients, True)[0]
    if not all(norm > clip for norm in figures.norms):
        raise UserError(
            f"the gradient's norm fell from {figures.norms[0]:.2g} below {clip} within {steps} steps; compare fewer"
        )
    return _Reference(figures, clip)


def _adopt(done: Path, new: Path) -> None:
    """Give a run what another has prepared of the same data."""
    for name in ("tokenizer", "cache"):
        if (done / name).is_dir():
            shutil.copytree(done / name, new / name)


def prepared(config: RunConfig, layout: LayoutText, optimizer: Optimizer, directory: Path, clip: float) -> RunConfig:
    """The config as it is run in a layout: on the CPU, with one thread a rank, without evaluation and checkpoints.

    Raises:
        UserError: the layout is not legal.
    """
    raw = config.model_dump(mode="json")
    raw["run"] |= {"directory": str(directory), "device": "cpu", "threads": 1}
    raw["data"] |= {"holdout": 0.0, "evaluation": []}
    raw["optimizer"] = {**SETTINGS[optimizer], "clip": clip}
    raw["schedule"] = {"name": "constant"}
    raw["train"] |= {"init_from": None}
    raw["evaluation"] = {}
    raw["checkpoint"] = {"interval": 0}
    raw["logging"] = {"interval": 1}
    return layout.of(parse_config(raw))


def _arithmetic(config: RunConfig) -> str:
    return "fp32" if config.engine.dtype == "auto" else config.engine.dtype


def _judge(layout: LayoutText, optimizer: Optimizer, expected: Figures, found: Figures, arithmetic: str) -> Verdict:
    loss = max(
        _relative(mine[term], theirs[term])
        for mine, theirs in zip(found.losses, expected.losses, strict=True)
        for term in theirs
    )
    norm = max(_relative(mine, theirs) for mine, theirs in zip(found.norms, expected.norms, strict=True))
    same = found.samples == expected.samples
    first, last = found.gradients[0], found.gradients[-1]
    held = max(first[0], last[0]) if optimizer_kind(optimizer).proportional else first[0]
    within = same and max(loss, norm) <= TOLERANCE[arithmetic] and held <= GRADIENT_TOLERANCE[arithmetic]
    return Verdict(layout.text, layout.ranks, optimizer, loss, norm, *first, *last, same, within)


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-12)
