"""Initial values by canonical name, so that every layout starts from the same weights."""

import hashlib
import math

import torch
from torch import Tensor

from llmscale.config.model import ModelConfig
from llmscale.model import Transformer
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.pipeline import keep_stage
from llmscale.parallel.shards import Shard, set_shard, shard_of
from llmscale.parallel.tensor import apply_tensor_parallel

BLOCK = 1 << 20
"""Elements of the flattened tensor that one generator draws."""


def build(
    config: ModelConfig,
    vocab_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    grid: RankGrid | None = None,
    by_positions: bool = False,
) -> Transformer:
    """A Transformer on `device` in fp32 with its initial values; of it only this rank's part where there is a grid.

    The values depend on (config, vocab_size, seed) only, and the global random state is not touched. No rank ever
    holds more than its part.

    Args:
        grid: with process groups; None: one process has all.
        by_positions: see `ParallelConfig.tensor_sequence`.
    """
    with torch.device("meta"):
        model = Transformer(config, vocab_size)
    shards: dict[str, Shard] = {}
    if grid is not None:
        keep_stage(model, grid)
        shards = apply_tensor_parallel(model, grid, by_positions)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        if name in shards:
            set_shard(parameter, shards[name])
    initialize(model, seed)
    return model


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Draw every parameter in place, each by its name alone (see `initial_values`)."""
    for name, parameter in model.named_parameters():
        shard = shard_of(parameter)
        if shard.cut and len(shard.shape) > 1:
            _draw_rectangle(model.config, seed, name, parameter, shard)
            continue
        flat, first = parameter.view(-1), shard.offsets[0] if shard.cut else 0
        for start in range(0, flat.numel(), BLOCK):
            end = min(start + BLOCK, flat.numel())
            flat[start:end] = initial_values(model.config, seed, name, first + start, first + end).to(flat)


def _draw_rectangle(config: ModelConfig, seed: int, name: str, parameter: Tensor, shard: Shard) -> None:
    """Draw whole rows of the global tensor, some at a time, and keep what lies in the rectangle."""
    inner = math.prod(shard.shape[1:])
    kept = slice(None), *(slice(low, low + size) for low, size in zip(shard.offsets[1:], shard.sizes[1:], strict=True))
    at_once = max(1, BLOCK // inner)
    for start in range(0, shard.sizes[0], at_once):
        end = min(start + at_once, shard.sizes[0])
        first, last = shard.offsets[0] + start, shard.offsets[0] + end
        values = initial_values(config, seed, name, first * inner, last * inner)
        parameter[start:end] = values.view(-1, *shard.shape[1:])[kept].to(parameter)


def initial_values(config: ModelConfig, seed: int, name: str, start: int, end: int) -> Tensor:
    """Elements [start, end) of the flattened global tensor `name`, 1-D fp32 on the CPU.

    Norm weights are 1 and biases 0. What else there is, is normal as `config.init_scheme` says.
    """
    if name.endswith("bias"):
        return torch.zeros(end - start)
    if name.endswith("norm.weight"):
        return torch.ones(end - start)
    return draw(seed, name, _deviation(config, name), start, end)


def _deviation(config: ModelConfig, name: str) -> float:
    if config.init_scheme == "fan_in":
        if name == "embedding.weight":
            return 1.0
        inputs = config.hidden_size
        if name.endswith("attention.query.weight"):
            inputs *= config.head_channels
        elif name.endswith("attention.output.weight"):
            inputs = config.heads * config.head_channels
        elif name.endswith("feed_forward.down.weight"):
            inputs = config.ffn_channels
        return inputs**-0.5
    into_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
    if into_residual and config.norm_order == "pre":
        return config.init_std / math.sqrt(2 * config.layers)
    return config.init_std


def draw(seed: int, name: str, std: float, start: int, end: int) -> Tensor:
    """Elements [start, end) of the normal values of tensor `name`, 1-D fp32 on the CPU.

    One generator per (seed, name, block of 2^20 elements): any slice equals the same slice of the whole.
    """
    pieces = []
    for block in range(start // BLOCK, -(-end // BLOCK)):
        digest = hashlib.sha256(f"{seed} {name} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        first, stop = max(start - block * BLOCK, 0), min(end - block * BLOCK, BLOCK)
        # torch draws normals in groups of 16, so a draw of whole groups is the beginning of every longer one.
        values = torch.randn(-(-stop // 16) * 16, generator=generator)
        pieces.append(values[first:stop])
    return torch.cat(pieces).mul_(std) if pieces else torch.empty(0)
