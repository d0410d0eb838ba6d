"""Proof that a checkpoint loads in a layout: it is loaded there, and all that ranks then hold is compared with it."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import load_tokenizer
from llmscale.checkpoint import Checkpoint
from llmscale.checkpoint.reader import newest_intact
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.process_group import all_reduce_sum, gather_objects, join, leave, read_world
from llmscale.engine.pipeline import make_engine
from llmscale.engine.settings import EngineSettings
from llmscale.layout.text import LayoutText
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parity.ranks import run_ranks
from llmscale.train.build import build_grid
from llmscale.train.resume import restore


def reload(path: str | Path, layout: LayoutText) -> str:
    """Load a checkpoint (the newest intact one of a run directory) on CPU ranks of this machine, and compare.

    Returns:
        A sentence that says what was found equal.

    Raises:
        UserError: no intact checkpoint, a layout that is not legal for it, or a tensor that is not what the checkpoint
            has.
    """
    checkpoint = newest_intact(path)
    raw = dict(checkpoint.manifest.config)
    raw["run"] |= {"device": "cpu", "threads": 1}
    # A layout of its own, and fp32 as the checkpoint has it.
    config = layout.of(parse_config({**raw, "parallel": {}, "engine": {"dtype": "fp32"}}, origin=str(checkpoint.path)))
    elements, problem = run_ranks(layout.ranks, reload_on_rank, str(checkpoint.path), config)[0]
    if problem:
        raise UserError(f"{checkpoint.path} does not load in layout {layout.text}: {problem}")
    kinds = ", ".join(f"{count:,} of {kind}" for kind, count in elements.items())
    return (
        f"{checkpoint.path} loads in layout {layout.text} on {layout.ranks} rank(s): {len(checkpoint.names):,} tensors"
        f" with {kinds} are what was saved, to the bit"
    )


def reload_on_rank(path: str, config: RunConfig) -> tuple[dict[str, int], str]:
    """On each rank of a layout: elements by kind that all ranks together hold, each once, and the first difference."""
    world = read_world("cpu")
    join(world)
    try:
        checkpoint = Checkpoint(path)
        grid = build_grid(config, world)
        vocab_size = config.model.vocabulary(load_tokenizer(checkpoint.tokenizer).vocab_size)
        model = init.build_hollow(config.model, vocab_size, grid, config.parallel.sequence_parallel)
        loss = build_loss(config.objective, config.model)
        engine = make_engine(model, loss, EngineSettings.of(config), grid, world.device, checkpoint.read)
        trained = any(len(checkpoint.kinds(name)) > 1 for name in checkpoint.names)
        if trained or checkpoint.manifest.optimizer:
            restore(engine, checkpoint)
        kinds = sorted({kind for name in checkpoint.names for kind in checkpoint.kinds(name)})
        counts, problem = dict.fromkeys(kinds, 0), ""
        for part in engine.state():
            # Imported weights have no optimizer state.
            if part.kind not in counts:
                continue
            saved = checkpoint.read(part.name, part.slice, part.kind)
            counts[part.kind] += saved.numel()
            if not problem and not torch.equal(part.tensor.cpu(), saved):
                problem = f"{part.kind} of {part.name} has other values on rank {world.rank}"
        totals = all_reduce_sum([float(count) for count in counts.values()])
        problem = next((found for found in gather_objects(problem) if found), "")
        found = {kind: round(total) for kind, total in zip(kinds, totals, strict=True)}
        return found, problem or _incomplete(checkpoint, found)
    finally:
        leave()


def _incomplete(checkpoint: Checkpoint, found: dict[str, int]) -> str:
    """Says which kind the ranks do not hold all of."""
    for kind, count in found.items():
        having = [name for name in checkpoint.names if kind in checkpoint.kinds(name)]
        saved = sum(torch.Size(checkpoint.shape(name, kind)).numel() for name in having)
        if saved != count:
            return f"the ranks hold {count:,} elements of {kind}, but {saved:,} were saved"
    return ""
