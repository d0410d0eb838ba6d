"""Initial values by canonical name, so that every layout starts from the same weights."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from llmscale.config.model import ModelConfig
from llmscale.model import Transformer, skeleton
from llmscale.model.attention import table_of
from llmscale.model.factors import DOWN, MAGNITUDE, UP
from llmscale.model.heads import heads_of
from llmscale.parallel.context import apply_context_parallel
from llmscale.parallel.expert import apply_expert_parallel
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.parameters import set_slice, slice_of
from llmscale.parallel.pipeline import keep_stage
from llmscale.parallel.tensor import apply_tensor_parallel
from llmscale.slices.tensor_slice import TensorSlice

BLOCK = 1 << 20
"""Elements of the flattened tensor that one generator draws."""


Weights = Callable[[str, TensorSlice], Tensor]
"""Where weights come from: (name, slice of the global tensor) to the slice's values, 1-D fp32 on the CPU."""


def build(
    config: ModelConfig,
    vocab_size: int,
    seed: int,
    device: torch.device | str = "cpu",
    grid: RankGrid | None = None,
    sequence_parallel: bool = False,
) -> Transformer:
    """A Transformer on `device` in fp32 with its initial values; of it only this rank's part where there is a grid.

    The values depend on (config, vocab_size, seed) only, and the global random state is not touched. No rank ever
    holds more than its part.

    Args:
        grid: with process groups; None: one process has all.
        sequence_parallel: see `ParallelConfig.sequence_parallel`.
    """
    model, slices = _own_skeleton(config, vocab_size, grid, sequence_parallel)
    model.to_empty(device=device)
    _mark(model, slices)
    initialize(model, seed)
    return model


def build_hollow(
    config: ModelConfig, vocab_size: int, grid: RankGrid | None = None, sequence_parallel: bool = False
) -> Transformer:
    """As `build`, on the CPU, but of each parameter only its shape: all its elements are one in memory.

    Whoever trains the model gives it values, at ZeRO 3 each rank a part of them (`llmscale.engine.deepspeed.weights`).
    """
    model, slices = _own_skeleton(config, vocab_size, grid, sequence_parallel)
    model._apply(lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))
    _mark(model, slices)
    return model


def _own_skeleton(
    config: ModelConfig, vocab_size: int, grid: RankGrid | None, sequence_parallel: bool
) -> tuple[Transformer, dict[str, TensorSlice]]:
    """This rank's part of the model on the meta device, and what cut or shared parameters are parts of."""
    model = skeleton(config, vocab_size)
    slices: dict[str, TensorSlice] = {}
    if grid is not None:
        keep_stage(model, grid)
        slices = apply_tensor_parallel(model, grid, sequence_parallel)
        apply_expert_parallel(model, grid, slices)
        apply_context_parallel(model, grid)
    return model, slices


def _mark(model: Transformer, slices: dict[str, TensorSlice]) -> None:
    for name, parameter in model.named_parameters():
        if name in slices:
            set_slice(parameter, slices[name])


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Draw every parameter in place, each by its name alone (see `initial_values`)."""
    weights = drawn(model.config, seed)
    for name, parameter in model.named_parameters():
        fill(parameter.view(-1), weights, name, slice_of(parameter))


@torch.no_grad()
def fill(values: Tensor, weights: Weights, name: str, part: TensorSlice) -> None:
    """Give a slice's `values` what they should be; some at a time where the source can find them without those
    before."""
    at_once = part.numel if part.origin is None else 16 * BLOCK
    for start in range(part.start, part.end, max(at_once, 1)):
        end = min(start + at_once, part.end)
        values[start - part.start : end - part.start].copy_(weights(name, part.flat_range(start, end)))


def blank(name: str, part: TensorSlice) -> Tensor:
    """`Weights` of zeros, for a model that gets its values later."""
    return torch.zeros(part.numel)


def drawn(config: ModelConfig, seed: int) -> Weights:
    """The initial weights of a model: `initial_values` of slices, and factors as `with_factors` has them."""

    def values(name: str, start: int, end: int) -> Tensor:
        return initial_values(config, seed, name, start, end)

    weights = _slices(values)
    return weights if config.lora is None else with_factors(weights, config, seed)


def with_factors(weights: Weights, config: ModelConfig, seed: int) -> Weights:
    """`weights` and, of layers with low-rank factors (`ModelConfig.lora`), what these begin with: A uniform within
    1 / sqrt(inputs) as peft draws it, B 0, and DoRA's magnitudes the lengths of the weights' rows, so that the model
    computes at first what it does without."""
    made = skeleton(config, config.vocab_size or 1)
    shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}

    def drawn_uniform(name: str, start: int, end: int) -> Tensor:
        return draw(seed, name, shapes[name][-1] ** -0.5, start, end, uniform=True)

    factors = _slices(drawn_uniform)

    def read(name: str, part: TensorSlice) -> Tensor:
        layer, _, own = name.rpartition(".")
        if own == DOWN:
            return factors(name, part)
        if own == UP:
            return torch.zeros(part.numel)
        if own == MAGNITUDE:
            return _lengths(weights, f"{layer}.weight", shapes[f"{layer}.weight"], part)
        return weights(name, part)

    return read


def _lengths(weights: Weights, name: str, shape: tuple[int, ...], part: TensorSlice) -> Tensor:
    """Lengths of rows of a weight (..., outputs, inputs): a slice of (..., outputs)."""
    *_, outputs = part.sizes
    inputs, at_once, found, start = shape[-1], max(1, BLOCK // shape[-1]), [torch.empty(0)], part.start
    while start < part.end:
        stacks, first = divmod(start, outputs)
        count = min(outputs - first, part.end - start, at_once)
        offsets = (*(offset + stacks for offset in part.offsets[:-1]), part.offsets[-1] + first, 0)
        rows = TensorSlice.rectangle(shape, offsets, (*(1 for _ in part.sizes[:-1]), count, inputs))
        found.append(weights(name, rows).view(count, inputs).norm(dim=1))
        start += count
    return torch.cat(found)


def _slices(values: Callable[[str, int, int], Tensor]) -> Weights:
    """`Weights` of elements [start, end) of flattened global tensors, by name."""

    def read(name: str, part: TensorSlice) -> Tensor:
        if part.origin is None:
            return _draw_rectangle(values, name, part)
        return values(name, part.origin + part.start, part.origin + part.end)

    return read


def _draw_rectangle(values: Callable[[str, int, int], Tensor], name: str, part: TensorSlice) -> Tensor:
    """Draw whole rows of the global tensor, some at a time, and keep what lies in the rectangle."""
    inner, row = math.prod(part.shape[1:]), math.prod(part.sizes[1:])
    kept = slice(None), *part.index[1:]
    at_once = max(1, BLOCK // inner)
    top, bottom = part.start // row, -(-part.end // row)
    pieces = [torch.empty(0)]
    for low in range(top, bottom, at_once):
        high = min(low + at_once, bottom)
        first, last = part.offsets[0] + low, part.offsets[0] + high
        pieces.append(values(name, first * inner, last * inner).view(-1, *part.shape[1:])[kept].reshape(-1))
    return torch.cat(pieces)[part.start - top * row : part.end - top * row]


def initial_values(config: ModelConfig, seed: int, name: str, start: int, end: int) -> Tensor:
    """Elements [start, end) of the flattened global tensor `name`, 1-D fp32 on the CPU.

    Norm weights are `config.norm_start` and biases 0. What else there is, is normal as `config.init_scheme` says.
    """
    if name.endswith("bias"):
        return torch.zeros(end - start)
    if name.endswith("norm.weight"):
        return torch.full((end - start,), config.norm_start)
    return draw(seed, name, _deviation(config, name), start, end)


def _deviation(config: ModelConfig, name: str) -> float:
    for head in heads_of(config):
        attribute, _, below = name.partition(".")
        own = head.deviation(below) if attribute == head.attribute else None
        if own is not None:
            return own
    if config.init_scheme == "fan_in":
        if name == "embedding.weight":
            return 1.0
        return _inputs(config, name) ** -0.5
    into_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
    if into_residual and config.norm_order == "pre":
        return config.init_std / math.sqrt(2 * config.layers)
    return config.init_std


def _inputs(config: ModelConfig, name: str) -> int:
    """What the weight `name` sums over, as `init_scheme: fan_in` counts it."""
    if name.endswith("feed_forward.down.weight"):
        return config.ffn_channels
    module = name.removesuffix(".weight")
    within, _, part = module.rpartition(".")
    if within.endswith("attention"):
        for projection in table_of(config, cross=within.endswith("cross_attention")).projections:
            if projection.name == part:
                return projection.fan_in or projection.inputs
    return config.hidden_size


def draw(seed: int, name: str, scale: float, start: int, end: int, *, uniform: bool = False) -> Tensor:
    """Elements [start, end) of the normal values of tensor `name`, of deviation `scale`, or of the uniform ones from
    -scale to scale, 1-D fp32 on the CPU.

    One generator per (seed, name, block of 2^20 elements): any slice equals the same slice of the whole.
    """
    pieces = []
    for block in range(start // BLOCK, -(-end // BLOCK)):
        digest = hashlib.sha256(f"{seed} {name} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        first, stop = max(start - block * BLOCK, 0), min(end - block * BLOCK, BLOCK)
        # torch draws normals in groups of 16, so a draw of whole groups is the beginning of every longer one.
        count = -(-stop // 16) * 16
        values = torch.rand(count, generator=generator) * 2 - 1 if uniform else torch.randn(count, generator=generator)
        pieces.append(values[first:stop])
    return torch.cat(pieces).mul_(scale) if pieces else torch.empty(0)
