"""The weight map at work: which of our tensors make which of theirs, their shapes, and the conversion both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from llmscale.config import ModelConfig
from llmscale.families.hugging_face import HuggingFace, Weight
from llmscale.model import skeleton
from llmscale.model.heads import heads_of

Shapes = dict[str, tuple[int, ...]]
VOCABULARY = ("embedding.weight", "head.weight", "head.bias")
"""Tensors with a row for each token; ours are padded."""


@dataclass(frozen=True)
class Move:
    """A row of the weight map for one layer and kind: one of `ours` is made of `theirs`, or the other way around."""

    ours: tuple[str, ...]
    """Several, where theirs holds them one after the other."""
    theirs: tuple[str, ...]
    """Several, where ours is the stack of all experts'."""
    row: Weight
    heads: int
    """Key heads, for interleaved parts."""
    sizes: tuple[int, ...]
    """Rows of each of ours within theirs."""
    shape: tuple[int, ...]
    """Of each of theirs."""

    @property
    def stacked(self) -> bool:
        return "{expert}" in self.row.theirs

    def to_ours(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Our tensors, unpadded, from theirs."""
        if self.stacked:
            return [torch.stack(list(tensors))]
        (tensor,) = tensors
        if self.row.transposed and tensor.dim() == 2:
            tensor = tensor.T
        if self.row.interleaved:
            parts = tensor.unflatten(0, (self.heads, -1)).split([size // self.heads for size in self.sizes], dim=1)
            return [part.flatten(0, 1) for part in parts]
        return list(tensor.split(self.sizes))

    def to_theirs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Their tensors from ours, unpadded."""
        if self.stacked:
            return list(tensors[0])
        if self.row.interleaved:
            return [torch.cat([tensor.unflatten(0, (self.heads, -1)) for tensor in tensors], dim=1).flatten(0, 1)]
        tensor = torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
        return [tensor.T if self.row.transposed and tensor.dim() == 2 else tensor]


def shapes_of(model: ModelConfig, vocab_size: int) -> Shapes:
    """Our tensors by canonical name, with the rows of the vocabulary alone."""
    built = skeleton(model, vocab_size)
    found = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    return {name: (vocab_size, *shape[1:]) if name in VOCABULARY else shape for name, shape in found.items()}


def padded(tensor: Tensor, rows: int) -> Tensor:
    """A tensor with zero rows added at the end, up to `rows`."""
    if len(tensor) == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])


def plan(table: HuggingFace, model: ModelConfig, shapes: Shapes) -> list[Move]:
    """The moves between a model and their class, which together hold each of our tensors once."""
    layers = max(model.layers, model.encoder_layer_count)
    moves: dict[str, Move] = {}
    heads = heads_of(model)
    body = heads[0].body(table)
    rows = ((row, True) for row in table.weights), ((row, False) for head in heads for row in head.weights(table))
    for row, of_body in chain(*rows):
        if row.only is not None and not row.only(model):
            continue
        for ours, spelled in _spelled(row, layers):
            moved = of_body and body != table.prefix and spelled.startswith(table.prefix)
            theirs = body + spelled.removeprefix(table.prefix) if moved else spelled
            stacked = "{expert}" in theirs
            # Dense layers and layers of experts have one name for theirs; the experts' have a dimension more.
            if not all(name in shapes and (len(shapes[name]) == 3) == stacked for name in ours):
                continue
            experts = range(shapes[ours[0]][0] if stacked else 1)
            names = tuple(theirs.replace("{expert}", str(expert)) for expert in experts)
            moves.setdefault(theirs, Move(ours, names, row, model.kv_head_count, *_sizes(row, ours, shapes)))
    lacking = set(shapes) - {name for move in moves.values() for name in move.ours}
    assert not lacking, f"the weight map of {table.model_type} has no row for {sorted(lacking)}"
    return list(moves.values())


def _spelled(row: Weight, layers: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """(our names, their name with {expert} in it) of a row for each layer and kind."""
    for layer in range(layers if "{layer}" in row.ours[0] else 1):
        for kind in ("weight", "bias") if "{kind}" in row.theirs else ("",):
            spell = {"{layer}": str(layer), "{kind}": kind}
            yield tuple(_filled(name, spell) for name in row.ours), _filled(row.theirs, spell)


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(?:layer|kind)\}", lambda match: values[match[0]], pattern)


def _sizes(row: Weight, ours: Sequence[str], shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    sizes = tuple(shapes[name][0] for name in ours)
    shape = shapes[ours[0]]
    if "{expert}" in row.theirs:
        return sizes, shape[1:]
    shape = (sum(sizes), *shape[1:])
    return sizes, shape[::-1] if row.transposed else shape
