"""A trained model from a checkpoint, whole and without DeepSpeed: for evaluation and generation."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.config import RunConfig, parse_config
from llmscale.model import Transformer, skeleton

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model with everything needed to use it."""

    model: Transformer
    tokenizer: Tokenizer
    config: RunConfig
    checkpoint: Checkpoint


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
) -> TrainedModel:
    """The model of a checkpoint (or the newest intact one of a run directory), in evaluation mode.

    Args:
        tokenizer: the checkpoint's, where it has been loaded already.

    Raises:
        UserError: no such directory, no intact checkpoint, or a checkpoint that does not fit its own config.
    """
    return model_of(newest_intact(path), device, dtype, tokenizer)


def model_of(
    checkpoint: Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: Tokenizer | None = None,
) -> TrainedModel:
    """The model of a checkpoint that has been verified, in evaluation mode; `tokenizer` as in `load_model`.

    Raises:
        UserError: a checkpoint that does not fit its own config.
    """
    if drawn := checkpoint.manifest.drawn:
        _log.warning(
            "%s of %s were drawn by `llmscale import --new-head` and never trained since",
            ", ".join(drawn),
            checkpoint.path,
        )
    config = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path))
    tokenizer = tokenizer or load_tokenizer(checkpoint.tokenizer)
    model = skeleton(config.model, config.model.vocabulary(tokenizer.vocab_size))
    require_tensors(checkpoint, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    model.to(dtype).to_empty(device=device)  # which takes memory
    load_weights(model, checkpoint)
    return TrainedModel(model.eval(), tokenizer, config, checkpoint)


@torch.no_grad()
def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Fill every parameter from a checkpoint, one tensor at a time.

    Raises:
        UserError: as `require_tensors`.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    require_tensors(checkpoint, shapes)
    for name, parameter in model.named_parameters():
        parameter.copy_(checkpoint.full(name))


def require_tensors(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
    """Refuse a checkpoint whose tensors are not those of a model.

    Args:
        shapes: of the model's tensors, by name.
        ignored: tensors that the checkpoint may have besides.

    Raises:
        UserError: a tensor is missing on either side or has another shape; names it and both shapes.
    """
    lacking = set(checkpoint.names) - set(shapes) - set(ignored)
    if lacking:
        raise UserError(
            f"{checkpoint.path} has the tensor {min(lacking)}, which the model lacks; make the model section that of"
            f" the checkpoint"
        )
    for name, shape in shapes.items():
        stored = checkpoint.shape(name)
        if stored != shape:
            raise UserError(
                f"{name} has shape {list(stored)} in {checkpoint.path}, but {list(shape)} in the model;"
                f" make the model section that of the checkpoint"
            )
