"""The weights that a run starts from: those of another checkpoint (`train.init_from`), which must fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from data_pipeline.tokenizer.store import interchangeable
from llmscale.checkpoint.model import require_tensors, weights_of
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.config import ModelConfig, parse_config
from llmscale.config.function import function_differences
from llmscale.distributed.agreement import on_rank_zero
from llmscale.model import Transformer
from llmscale.parallel.init import Weights


def start_from(model: Transformer, path: str, tokenizer: Tokenizer) -> Weights:
    """The weights of another run's checkpoint for a model.

    Raises:
        UserError: no intact checkpoint, another tokenizer, a tensor that is missing or has another shape, or a model
            section that makes another function of the tensors.
    """
    try:
        checkpoint = newest_intact(path)
        theirs = load_tokenizer(checkpoint.tokenizer)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    if not interchangeable(theirs, tokenizer):
        raise UserError(
            f"train.init_from {path} was trained with another tokenizer ({theirs.vocab_size} tokens, digest"
            f" {theirs.digest[:12]}) than this run's ({tokenizer.vocab_size} tokens, digest {tokenizer.digest[:12]});"
            f" set data.tokenizer to that checkpoint's"
        )
    with torch.device("meta"):
        whole = Transformer(model.config, model.vocab_size)
    try:
        require_tensors(checkpoint, {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()})
        require_function(model.config, checkpoint)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    return weights_of(checkpoint)


def require_function(model: ModelConfig, checkpoint: Checkpoint) -> None:
    """Refuse weights that were trained as another function than `model` makes of them; warn of other rotary settings,
    by which a context may be stretched.

    Raises:
        UserError: names the settings that differ, both values, and what to set.
    """
    if not checkpoint.manifest.config:
        return
    theirs = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path)).model
    differences = function_differences(model, theirs)
    rotary = {key: values for key, values in differences.items() if key.startswith("model.rotary_")}
    others = {key: values for key, values in differences.items() if key not in rotary}
    if others:
        shown = list(others.items())[:3]
        more = f" (and {len(others) - 3} more: {', '.join([*others][3:6])})" if len(others) > 3 else ""
        raise UserError(
            f"{checkpoint.path} was trained with {_settings((key, value) for key, (_, value) in shown)}, but the config"
            f" says {_settings((key, value) for key, (value, _) in shown)}{more}; set what the checkpoint has"
        )
    if rotary:
        text = (
            f"warning: train.init_from: {checkpoint.path} was trained with"
            f" {_settings((key, value) for key, (_, value) in rotary.items())}, but the config says"
            f" {_settings((key, value) for key, (value, _) in rotary.items())}, as for a longer context"
        )
        logging.getLogger("llmscale").warning(text)
        on_rank_zero(lambda: tell(text))


def _settings(values: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values)
