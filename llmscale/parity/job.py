"""One layout on one rank: a few steps, and the gradients of the first and the last."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmscale.config import RunConfig
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import broadcast_object, gather_to_lead, join, leave, read_world
from llmscale.slices.fragment import Fragment
from llmscale.train.run_directory import RunDirectory
from llmscale.train.setup import set_up
from llmscale.train.signals import PreemptionFlag

FLOOR = 1e-3
"""A parameter's gradient counts as no smaller than this share of the whole gradient: some have a true gradient of 0."""


@dataclass
class Figures:
    """What a layout computed, step by step."""

    losses: list[dict[str, float]] = field(default_factory=list)
    """Mean of each term of the loss."""
    norms: list[float] = field(default_factory=list)
    """Norm of the gradient before clipping."""
    samples: list[int] = field(default_factory=list)
    """Sums of the ledger: what each step was trained on."""
    gradients: list[tuple[float, str]] = field(default_factory=list)
    """Of the first and the last step: the largest difference of a parameter's gradient from the reference's, as
    `gradient_difference` measures it, and which one that is."""


def run_layout(config: RunConfig, steps: int, gradients: Path, reference: bool) -> Figures:
    """Train `steps` steps on this rank; all ranks give the same figures.

    Args:
        config: in its layout, with a run directory of its own.
        gradients: folder of the reference's gradients.
        reference: write them there, else compare with them.
    """
    found = Figures()
    run = RunDirectory(config.run.directory)
    world = read_world("cpu")
    join(world)
    with contextlib.ExitStack() as stack:
        stack.callback(leave)
        on_rank_zero(lambda: run.create(config))
        trainer = set_up(config, run, world, 1, stack.enter_context(PreemptionFlag()), stack).trainer
        for step in range(steps):
            seen: list[Fragment] = []
            watched = step in (0, steps - 1)
            with trainer.engine.watched_gradients(seen) if watched else contextlib.nullcontext():
                result = trainer.one_step()
            found.losses.append(result.losses)
            found.norms.append(result.grad_norm)
            found.samples.append(result.ledger_sum)
            if watched:
                _judge(found, seen, gradients / f"step-{step}.safetensors", reference)
    return found


def _judge(found: Figures, seen: list[Fragment], file: Path, reference: bool) -> None:
    """Keep the gradients of a step as the reference, or note the largest difference from it."""
    parts = gather_to_lead(seen)
    worst = (0.0, "")
    if parts is not None:
        whole = assembled(itertools.chain(*parts))
        if reference:
            save_file(whole, file)
        else:
            worst = gradient_difference(whole, load_file(file))
    found.gradients.append(broadcast_object(worst))


def assembled(fragments: Iterable[Fragment]) -> dict[str, Tensor]:
    """Whole tensors of the fragments of all ranks, by name; what none has is NaN."""
    whole: dict[str, Tensor] = {}
    for fragment in fragments:
        if fragment.name not in whole:
            whole[fragment.name] = torch.full(fragment.slice.shape, math.nan)
        fragment.slice.write(whole[fragment.name], fragment.tensor)
    return whole


def gradient_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest |found - expected| / max(|expected|, FLOOR x norm of all) of a parameter, and its name.

    It is infinite where a parameter is missing or not a number.
    """
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in expected.values()))
    worst = (0.0, "")
    for name in {**expected, **found}:
        if name not in found or name not in expected:
            return math.inf, name
        difference = float((found[name].double() - expected[name].double()).norm())
        scale = max(float(expected[name].double().norm()), FLOOR * norm)
        ratio = difference / scale if math.isfinite(difference) else math.inf
        worst = max(worst, (ratio, name))
    return worst
