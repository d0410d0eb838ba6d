"""Low-rank factors under our names and under transformers', by the family's weight map.

Where theirs holds several of our weights one after the other (GPT-2's `c_attn`), its A has the rows of all of our A,
and its B their B along the diagonal, which is the same function; a scale goes with the rank (`alpha_pattern`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmscale.hugging_face.weights import Move


@dataclass(frozen=True)
class Factors:
    """Those of one linear layer."""

    down: Tensor
    """A, (rank, inputs)."""
    up: Tensor
    """B, (outputs, rank)."""
    magnitude: Tensor | None = None
    """(outputs,), with DoRA."""


@dataclass(frozen=True)
class Theirs:
    """Those of one of their modules."""

    module: str
    """Its name in their model."""
    factors: Factors
    columns: dict[str, tuple[int, int]]
    """First and last column of B that each of our layers has, by its name."""


def modules_of(move: Move) -> tuple[str, ...]:
    """Our layers whose weights a move holds; none where it moves something else."""
    layers = tuple(name.removesuffix(".weight") for name in move.ours)
    matrices = len(move.shape) == 2 and all(name.endswith(".weight") for name in move.ours)
    return layers if matrices and all(name.endswith(".weight") for name in move.theirs) else ()


def to_theirs(
    move: Move, held: dict[str, Factors], outputs: dict[str, int], lengths: Callable[[str], Tensor]
) -> list[Theirs]:
    """What their modules have in place of our layers' factors.

    Args:
        held: by layer, of experts stacks; some layers of a move may have none.
        outputs: of each layer of the move.
        lengths: (outputs,) of the rows of a layer's weight, its magnitudes where it has no factors.
    """
    layers = modules_of(move)
    names = [name.removesuffix(".weight") for name in move.theirs]
    if move.stacked:
        (layer,) = layers
        own = held[layer]
        rank = own.down.shape[-2]
        magnitudes = [None] * len(names) if own.magnitude is None else list(own.magnitude)
        parts = zip(names, own.down, own.up, magnitudes, strict=True)
        return [Theirs(name, Factors(*tensors), {layer: (0, rank)}) for name, *tensors in parts]
    own_layers = [layer for layer in layers if layer in held]
    downs = [held[layer].down for layer in own_layers]
    if all(torch.equal(down, downs[0]) for down in downs):
        downs = downs[:1]
    rank = sum(len(down) for down in downs)
    columns, ups, first = {}, [], 0
    for layer in layers:
        up = torch.zeros(outputs[layer], rank)
        if layer in held:
            last = first + len(held[layer].down)
            up[:, first:last] = held[layer].up
            columns[layer] = (first, last)
            first = last if len(downs) > 1 else 0
        ups.append(up)
    magnitude = None
    if held[own_layers[0]].magnitude is not None:
        each = [held[layer].magnitude if layer in held else lengths(layer) for layer in layers]
        magnitude = _rows(move).to_theirs([one for one in each if one is not None])[0]
    return [Theirs(names[0], Factors(torch.cat(downs), _rows(move).to_theirs(ups)[0], magnitude), columns)]


def to_ours(
    move: Move, theirs: Sequence[Factors], columns: dict[str, tuple[int, int]] | None = None
) -> dict[str, Factors]:
    """Our layers' factors, of experts stacks, from those of all their modules of a move.

    Args:
        columns: as in `Theirs`, of those of our layers that had factors; None: all have, and all columns.
    """
    layers = modules_of(move)
    if move.stacked:
        down, up = (torch.stack([getattr(each, name) for each in theirs]) for name in ("down", "up"))
        dora = theirs[0].magnitude is not None
        magnitude = torch.stack([each.magnitude for each in theirs if each.magnitude is not None]) if dora else None
        return {layers[0]: Factors(down, up, magnitude)}
    (own,) = theirs
    ups = _rows(move).to_ours([own.up])
    magnitudes = [None] * len(layers) if own.magnitude is None else _rows(move).to_ours([own.magnitude])
    found = {}
    for layer, up, magnitude in zip(layers, ups, magnitudes, strict=True):
        first, last = (0, len(own.down)) if columns is None else columns.get(layer, (0, 0))
        if last:
            found[layer] = Factors(own.down[first:last], up[:, first:last].contiguous(), magnitude)
    return found


def with_rank(factors: Factors, rank: int) -> Factors:
    """The same function at a larger rank, whose other columns add nothing."""
    more = rank - factors.down.shape[-2]
    pad = torch.nn.functional.pad
    return Factors(pad(factors.down, (0, 0, 0, more)), pad(factors.up, (0, more)), factors.magnitude)


def _rows(move: Move) -> Move:
    """The move of what has the outputs of a weight and none of its inputs: B, and magnitudes."""
    return replace(move, row=replace(move.row, transposed=False))
