"""A trained model from a checkpoint, whole and without DeepSpeed: for evaluation and generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.config import RunConfig, parse_config
from llmscale.model import Transformer


@dataclass(frozen=True)
class TrainedModel:
    """A model with everything needed to use it."""

    model: Transformer
    tokenizer: Tokenizer
    config: RunConfig
    checkpoint: Checkpoint


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """The model of a checkpoint (or the newest intact one of a run directory), in fp32 and in evaluation mode.

    Raises:
        UserError: no such directory, no intact checkpoint, or a checkpoint that does not fit its own config.
    """
    checkpoint = newest_intact(path)
    config = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path))
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    with torch.device("meta"):
        model = Transformer(config.model, config.model.vocabulary(tokenizer.vocab_size))
    model.to_empty(device=device)
    load_weights(model, checkpoint)
    return TrainedModel(model.eval(), tokenizer, config, checkpoint)


Rectangle = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Shape of a global tensor, and offsets and sizes of a part of it."""


def _whole(parameter: torch.Tensor) -> Rectangle:
    return tuple(parameter.shape), (0,) * parameter.dim(), tuple(parameter.shape)


def _names(model: Transformer) -> set[str]:
    """The names of all parameters, also of those that other stages of a pipeline have."""
    with torch.device("meta"):
        return {name for name, _ in Transformer(model.config, model.vocab_size).named_parameters()}


@torch.no_grad()
def load_weights(
    model: Transformer, checkpoint: Checkpoint, part_of: Callable[[torch.Tensor], Rectangle] = _whole
) -> None:
    """Fill every parameter from a checkpoint, one tensor at a time.

    Args:
        part_of: what each parameter is a part of.

    Raises:
        UserError: a tensor is missing on either side or has another shape; names it and both shapes.
    """
    lacking = set(checkpoint.names) - _names(model)
    if lacking:
        raise UserError(
            f"{checkpoint.path} has the tensor {min(lacking)}, which the model lacks; make the model section that of"
            f" the checkpoint"
        )
    for name, parameter in model.named_parameters():
        shape, offsets, sizes = part_of(parameter)
        parameter.copy_(checkpoint.read(name, offsets=offsets, sizes=sizes, shape=shape).view(sizes))
