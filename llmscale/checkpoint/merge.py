"""The weights of a checkpoint with low-rank factors, without them: each weight has in it what its factors add."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data_pipeline.base.errors import UserError
from llmscale.checkpoint.model import model_of
from llmscale.checkpoint.reader import Checkpoint
from llmscale.config.lora import LoraConfig
from llmscale.model import Transformer, skeleton
from llmscale.model.factors import DOWN, MAGNITUDE, UP, is_factor
from llmscale.model.low_rank import merged
from llmscale.slices.tensor_slice import TensorSlice

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""The largest difference that merging may make, where none is given, by what the weights are then held in."""
_PROBE = (2, 64)
"""Samples and most tokens of the probe."""
_AT_ONCE = 1 << 24
"""Elements of a weight that are held at a time."""


def base_names(checkpoint: Checkpoint) -> list[str]:
    """The tensors that are no factors."""
    return [name for name in checkpoint.names if not is_factor(name)]


def merged_weights_of(checkpoint: Checkpoint, lora: LoraConfig) -> Callable[[str, TensorSlice], Tensor]:
    """The weights that a checkpoint has, merged in fp32; only what is asked for is computed.

    Args:
        lora: what the checkpoint's model has.
    """
    names = set(checkpoint.names)

    def read(name: str, part: TensorSlice) -> Tensor:
        layer, _, own = name.rpartition(".")
        if own != "weight" or f"{layer}.{DOWN}" not in names:
            return checkpoint.read(name, part)
        *leading, rows, columns = part.sizes
        found, line, last = [torch.empty(0)], part.start // columns, -(-part.end // columns)
        while line < last:
            stack, row = divmod(line, rows)
            count = max(1, min(rows - row, last - line, _AT_ONCE // part.shape[-1]))
            place = tuple(offset + stack for offset in part.offsets[: len(leading)])
            whole = _rows(checkpoint, layer, place, part.offsets[-2] + row, count, lora.scale)
            found.append(whole[:, part.offsets[-1] : part.offsets[-1] + columns].reshape(-1))
            line += count
        first = part.start % columns
        return torch.cat(found)[first : first + part.numel]

    return read


def merged_tensor(checkpoint: Checkpoint, name: str, lora: LoraConfig | None) -> Tensor:
    """A whole tensor, merged where the checkpoint has factors for it; fp32 on the CPU."""
    layer, _, own = name.rpartition(".")
    weight = checkpoint.full(name)
    if lora is None or own != "weight" or f"{layer}.{DOWN}" not in checkpoint.names:
        return weight
    magnitude = checkpoint.full(f"{layer}.{MAGNITUDE}") if lora.dora else None
    return merged(weight, checkpoint.full(f"{layer}.{DOWN}"), checkpoint.full(f"{layer}.{UP}"), magnitude, lora.scale)


def _rows(checkpoint: Checkpoint, layer: str, place: tuple[int, ...], row: int, count: int, scale: float) -> Tensor:
    """(count, inputs): rows of a merged weight; `place`: the expert, where the weight is a stack."""
    within, one = (*place, row), tuple(1 for _ in place)

    def of(name: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        shape = checkpoint.shape(f"{layer}.{name}")
        return checkpoint.read(f"{layer}.{name}", TensorSlice.rectangle(shape, offsets, sizes))

    inputs, rank = checkpoint.shape(f"{layer}.{DOWN}")[-1], checkpoint.shape(f"{layer}.{DOWN}")[-2]
    weight = of("weight", (*within, 0), (*one, count, inputs)).view(count, inputs)
    down = of(DOWN, (*place, 0, 0), (*one, rank, inputs)).view(rank, inputs)
    up = of(UP, (*within, 0), (*one, count, rank)).view(count, rank)
    dora = f"{layer}.{MAGNITUDE}" in checkpoint.names
    magnitude = of(MAGNITUDE, within, (*one, count)) if dora else None
    return merged(weight, down, up, magnitude, scale)


def require_same_outputs(checkpoint: Checkpoint, dtype: torch.dtype, bound: float | None = None) -> str:
    """Compare what a model computes of a probe (random tokens) before and after merging, and say how far apart that is.

    Args:
        dtype: what the merged weights are rounded to.
        bound: the largest difference of logits (of hidden states where the head is no language model's), as a share of
            the largest of them; None: that of `BOUNDS`.

    Raises:
        UserError: the difference is above the bound.
    """
    bound = BOUNDS[dtype] if bound is None else bound
    difference = _difference(checkpoint, dtype)
    if not difference <= bound:
        raise UserError(
            f"merging the factors of {checkpoint.path} changes the outputs for a probe by {difference:.1e} of the"
            f" largest one, above --largest-difference {bound:g}; export it in fp32, give a larger bound, or export"
            f" the adapter alone (--adapter)"
        )
    return f"merged in fp32: the largest difference of the outputs for a probe is {difference:.1e} of the largest one"


@torch.no_grad()
def _difference(checkpoint: Checkpoint, dtype: torch.dtype) -> float:
    trained = model_of(checkpoint)
    config, vocab_size = trained.config.model, trained.model.vocab_size
    expected = _outputs(trained.model)
    del trained
    plain = skeleton(config.plain, vocab_size)
    plain.to_empty(device="cpu")
    for name, parameter in plain.named_parameters():
        parameter.copy_(merged_tensor(checkpoint, name, config.lora).to(dtype))
    found = _outputs(plain.eval())
    finite = expected.isfinite()
    difference = float((found - expected)[finite].abs().max() / expected[finite].abs().max())
    return difference if bool((found.isfinite() == finite).all()) else math.inf


def _outputs(model: Transformer) -> Tensor:
    samples, length = _PROBE[0], min(_PROBE[1], model.config.max_positions)
    tokens = torch.randint(0, model.vocab_size, (samples, length), generator=torch.Generator().manual_seed(0))
    sources = {"encoder_inputs": tokens.flip(1)} if model.encoder is not None else {}
    hidden = model(tokens, **sources).hidden
    return model.head(hidden) if "language" in model.config.predicts else hidden
