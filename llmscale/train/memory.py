"""Whether a machine can hold what its ranks keep of a model."""

from __future__ import annotations

import os

import torch

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.distributed.process_group import World
from llmscale.engine.engine import resolve_dtype
from llmscale.engine.whole import is_cut
from llmscale.model import skeleton
from llmscale.model.experts import ExpertLinear
from llmscale.parallel.grid import RankGrid


def require_memory(
    config: RunConfig, tokens: int, grid: RankGrid, world: World, memory: int | None = None, writes: bool = False
) -> None:
    """Refuse a model whose weights alone this machine cannot hold: what all of its ranks keep of them, and the fp32
    masters where those are others; and where texts are written by a model that is cut, all of it on each rank besides.

    Args:
        tokens: of the tokenizer.
        memory: what there is, in bytes: of the machine, on a GPU of each GPU; as the system says when not given.

    Raises:
        UserError: names both sizes.
    """
    on_gpu, ranks = world.device.type == "cuda", 1 if world.device.type == "cuda" else world.local_size
    if memory is None and on_gpu:
        memory = torch.cuda.get_device_properties(world.device).total_memory
    memory = memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    whole = skeleton(config.model, config.model.vocabulary(tokens))
    parameters = sum(p.numel() for p in whole.parameters())
    experts = sum(p.numel() for part in whole.modules() if isinstance(part, ExpertLinear) for p in part.parameters())
    dtype = resolve_dtype(config.engine.dtype, world.device)
    shares = grid.get_data_parallel_world_size()
    bytes_each = dtype.itemsize / (shares if config.engine.zero_stage == 3 else 1)
    if on_gpu and config.engine.offload == "optimizer_and_weights":
        bytes_each = 0.0
    if dtype != torch.float32 and not (on_gpu and config.engine.offload != "none"):
        bytes_each += 4 / shares
    parts = grid.tensor * grid.pipeline
    needed = bytes_each * (parameters - experts + experts / grid.expert) / parts
    if needed * ranks > memory:
        parts *= grid.expert
        share = f" and {parts} parallel parts" if parts > 1 else ""
        place = f"this machine ({ranks}), but the machine" if not on_gpu else "this machine, but its GPU"
        raise UserError(
            f"the model has {parameters / 1e9:,.1f} B parameters{share}, {needed / 2**30:,.0f} GiB of weights for each"
            f" rank of {place} has {memory / 2**30:,.0f} GiB of memory; start more ranks on more machines with"
            f" engine.zero_stage=3, raise parallel.tensor or parallel.pipeline, or make the model smaller"
            f" (model.layers, model.hidden_size)"
        )
    whole_bytes = dtype.itemsize * parameters if writes and is_cut(config.engine, config.parallel) else 0
    if (needed + whole_bytes) * ranks > memory:
        raise UserError(
            f"during training texts are written (evaluation.generate, or a task of kind generate), for which each rank"
            f" has the whole model, {whole_bytes / 2**30:,.0f} GiB, besides its own {needed / 2**30:,.0f} GiB, but"
            f" {'its GPU' if on_gpu else f'this machine of {ranks} ranks'} has {memory / 2**30:,.0f} GiB of memory;"
            f" leave them out, and evaluate checkpoints with llmscale eval --tasks"
        )
