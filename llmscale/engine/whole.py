"""A model that trains, whole on each rank: for what a part of it cannot do, such as writing text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from llmscale.config.system import EngineConfig, ParallelConfig
from llmscale.distributed.process_group import gather_objects
from llmscale.engine.deepspeed.zero_state import WEIGHT
from llmscale.engine.engine import Engine
from llmscale.model import Transformer, skeleton
from llmscale.slices.tensor_slice import TensorSlice

CHUNK = 1 << 26
"""Elements that travel at once, about."""


def is_cut(engine: EngineConfig, parallel: ParallelConfig) -> bool:
    """Whether ranks have parts of weights only."""
    return engine.zero_stage == 3 or parallel.tensor * parallel.pipeline * parallel.expert > 1


@torch.no_grad()
def whole_model(engine: Engine, vocab_size: int) -> Transformer:
    """The model with the weights of now, in the engine's arithmetic and in evaluation mode; collective.

    Where each rank has all weights, they are the engine's own, which its next update changes; else every rank gets
    those that a checkpoint would have, from the ranks that keep them.

    Args:
        vocab_size: rows of the vocabulary.
    """
    config = engine.config
    model = skeleton(config.model, vocab_size)
    if is_cut(config.engine, config.parallel):
        model.to(engine.dtype).to_empty(device=engine.device)
        _gather(dict(model.named_parameters()), engine)
    else:
        _share(model, dict(engine.named))
    return model.requires_grad_(False).eval()


def _share(model: Transformer, own: dict[str, nn.Parameter]) -> None:
    """Give a model parameters that lie where others do."""
    shared = {name: nn.Parameter(parameter.data, requires_grad=False) for name, parameter in own.items()}
    first: dict[nn.Parameter, str] = {}  # tied ones have several names, of which the first counts
    names = {name: first.setdefault(value, name) for name, value in model.named_parameters(remove_duplicate=False)}
    model.load_state_dict({name: shared[known] for name, known in names.items()}, assign=True)


def _gather(tensors: dict[str, nn.Parameter], engine: Engine) -> None:
    """Fill whole tensors with what all ranks have of them."""
    own = [fragment for fragment in engine.state() if fragment.kind == WEIGHT]
    missing = sum(tensor.numel() for tensor in tensors.values())
    for rank, slices in enumerate(gather_objects([(fragment.name, fragment.slice) for fragment in own])):
        held = iter(own)
        for some in _chunks(slices):
            sizes = [part.numel for _, part in some]
            flat = torch.empty(sum(sizes), dtype=engine.dtype, device=engine.device)
            if rank == engine.grid.rank:
                for values in flat.split(sizes):
                    values.copy_(next(held).tensor)
            dist.broadcast(flat, src=rank)
            for values, (name, part) in zip(flat.split(sizes), some, strict=True):
                part.write(tensors[name], values)
            missing -= sum(sizes)
    assert not missing, f"{missing} elements of the model are on no rank"


def _chunks(slices: Sequence[tuple[str, TensorSlice]]) -> Iterator[list[tuple[str, TensorSlice]]]:
    chunk: list[tuple[str, TensorSlice]] = []
    size = 0
    for name, part in slices:
        if chunk and size + part.numel > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append((name, part))
        size += part.numel
    if chunk:
        yield chunk
