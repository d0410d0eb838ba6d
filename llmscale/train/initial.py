"""The weights that a run starts from: those of another checkpoint (`train.init_from`), which must fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable
from typing import Any

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.store import interchangeable
from llmscale.checkpoint.merge import merged_weights_of
from llmscale.checkpoint.model import require_tensors
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.config import ModelConfig, RunConfig, parse_config
from llmscale.config.function import function_differences
from llmscale.distributed.agreement import on_rank_zero
from llmscale.finetune.trained import EMBEDDINGS, part_of
from llmscale.model import Transformer, skeleton
from llmscale.model.factors import is_factor
from llmscale.model.heads import all_heads
from llmscale.parallel.init import Weights, drawn, with_factors
from llmscale.slices.tensor_slice import TensorSlice

_STRETCHING = ("model.rotary_base", "model.rotary_local_base", "model.rotary_scaling", "model.rotary_local_scaled")
"""Beginnings of the settings by which a context may be stretched; other rotary settings make another function."""
_SHARED = ("pooler.", "dense.", "norm.")
"""Layers of heads before what is special to them, which one head takes from another."""


def start_from(model: Transformer, path: str, tokenizer: Tokenizer, seed: int = 0) -> Weights:
    """The weights of another run's checkpoint for a model. A head in place of the language model's that the checkpoint
    does not have is drawn by `seed`, but for layers before its projection, where another head of the checkpoint has
    them (BERT's pooler, ModernBERT's dense layer and norm); so are
    low-rank factors (`llmscale.parallel.init.with_factors`). Those of a checkpoint go on where the model has the same,
    and are merged into its weights where the model has none. An encoder takes that of an encoder-decoder.

    Raises:
        UserError: no intact checkpoint, another tokenizer, a tensor that is missing or has another shape, or a model
            section that makes another function of the tensors.
    """
    checkpoint = open_model(path, tokenizer, "train.init_from")
    whole = skeleton(model.config, model.vocab_size)
    shapes = {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()}
    fresh = _fresh(model.config, checkpoint, shapes)
    same_head = fresh is None
    fresh = fresh or {}
    stored = {name: shape for name, shape in shapes.items() if name not in fresh and not is_factor(name)}
    ignored = [] if same_head else _heads_tensors(checkpoint.names)
    theirs = _model_of(checkpoint)
    if _leaves_decoder(model.config, theirs):
        stored = {_in_encoder(name): shape for name, shape in stored.items()}
        ignored += [name for name in checkpoint.names if part_of(theirs, name) == "decoder"]
    try:
        weights = _with_factors(model.config, checkpoint, seed)
        require_tensors(checkpoint, stored, ignored=[*ignored, *filter(is_factor, checkpoint.names)])
        require_function(model.config, checkpoint, head=same_head)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from None
    if not fresh:
        return weights
    parts = [f"{name} is {f'that of {home}' if home else 'drawn'}" for name, home in sorted(fresh.items())]
    said = f"train.init_from {path} has another head than {model.config.predicts[0]}: {', '.join(parts)}"
    on_rank_zero(lambda: tell(said))
    return _with_head(weights, drawn(model.config, seed), fresh)


def require_labels(config: RunConfig, redrawn: Collection[str]) -> None:
    """Refuse a head that was trained for other labels, which would mean others than the data's.

    Args:
        redrawn: tensors that are re-initialised.

    Raises:
        UserError: names the checkpoint, both lists and what to set.
    """
    ours = getattr(config.objective, "labels", None)
    if ours is None or config.train.init_from is None or any(part_of(config.model, name) == "head" for name in redrawn):
        return
    checkpoint = newest_intact(config.train.init_from)
    theirs = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path))
    labels = getattr(theirs.objective, "labels", None)
    if theirs.model.head is None or theirs.objective.name != config.objective.name or labels in (None, ours):
        return
    unnamed = labels == [f"LABEL_{output}" for output in range(len(labels))]
    if unnamed and len(labels) == len(ours):
        return
    raise UserError(
        f"train.init_from {checkpoint.path} has a head for the labels {_listed(labels)}, but objective.labels is"
        f" {_listed(ours)}; name its labels in its order, or set finetune.redraw=[head] for a new head"
    )


def _listed(labels: list[str], most: int = 8) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return f"{labels[:most]}{more}"


def _with_factors(model: ModelConfig, checkpoint: Checkpoint, seed: int) -> Weights:
    """The weights of a checkpoint, with or without low-rank factors as the model has them."""
    their_model = _model_of(checkpoint)
    theirs = their_model.lora
    stored = checkpoint.read if theirs is None or model.lora else merged_weights_of(checkpoint, theirs)
    if _leaves_decoder(model, their_model):
        stored = _of_encoder(stored)
    if theirs is None and model.lora is not None:
        return with_factors(stored, model, seed)
    if theirs is None or model.lora is None:
        return stored
    # What is dropped may change.
    ours, given = (lora.model_dump(exclude={"dropout"}) for lora in (model.lora, theirs))
    for key in ours:
        if ours[key] != given[key]:
            raise UserError(
                f"{checkpoint.path} has factors of finetune.lora.{key}={json.dumps(given[key])}, but the config says"
                f" {json.dumps(ours[key])}; set what it has to train them further, or merge them into its weights with"
                f" llmscale checkpoint merge and start from that"
            )
    return stored


def _model_of(checkpoint: Checkpoint) -> ModelConfig:
    return parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path)).model


def _leaves_decoder(model: ModelConfig, theirs: ModelConfig) -> bool:
    """Whether a model is the encoder of the encoder-decoder that a checkpoint holds."""
    return model.architecture == "encoder" and theirs.architecture == "encoder_decoder"


def _of_encoder(stored: Weights) -> Weights:
    def read(name: str, part: TensorSlice) -> torch.Tensor:
        return stored(_in_encoder(name), part)

    return read


def _in_encoder(name: str) -> str:
    """The name of an encoder's tensor in an encoder-decoder."""
    return name if name.partition(".")[0] in EMBEDDINGS or _heads_tensors([name]) else f"encoder.{name}"


def open_model(path: str, tokenizer: Tokenizer, option: str) -> Checkpoint:
    """The newest intact checkpoint of the model that a setting names, whose tokenizer must be the run's.

    Raises:
        UserError: there is none, or it has another tokenizer.
    """
    try:
        checkpoint = newest_intact(path)
        theirs = load_tokenizer(checkpoint.tokenizer)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    assert isinstance(theirs, StoredTokenizer)
    assert isinstance(tokenizer, StoredTokenizer)
    lacking = [role for role in ("cls", "sep") if role in tokenizer.appended and role not in theirs.special]
    if lacking and theirs.files == tokenizer.files:
        raise UserError(
            f"{option} {path} has a tokenizer without {' and '.join(lacking)} tokens, which this run's objective puts"
            f" around texts; set objective.pooling=mean (of labels of words and of spans objective.special_tokens=eos),"
            f" or start from a model that has them"
        )
    if not interchangeable(theirs, tokenizer):
        raise UserError(
            f"{option} {path} was trained with another tokenizer ({theirs.vocab_size} tokens, digest"
            f" {theirs.digest[:12]}) than this run's ({tokenizer.vocab_size} tokens, digest {tokenizer.digest[:12]});"
            f" set data.tokenizer to that checkpoint's"
        )
    return checkpoint


def require_same_model(model: ModelConfig, vocab_size: int, checkpoint: Checkpoint, option: str) -> None:
    """Raise UserError unless a checkpoint, which a setting names, has all tensors of a model and its function, with or
    without low-rank factors."""
    whole = skeleton(model.plain, vocab_size)
    shapes = {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()}
    try:
        require_tensors(checkpoint, shapes, ignored=list(filter(is_factor, checkpoint.names)))
        require_function(model, checkpoint)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _heads_tensors(names: Iterable[str]) -> list[str]:
    """Those that belong to heads."""
    attributes = {head.attribute for head in all_heads()}
    return [name for name in names if name.partition(".")[0] in attributes]


def _fresh(
    model: ModelConfig, checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]]
) -> dict[str, str | None] | None:
    """The tensors of a head in place of the language model's that a checkpoint does not have, with the tensor of
    another head that is to be taken for each; None: it is drawn. None where the checkpoint has that head."""
    theirs = _model_of(checkpoint)
    if model.head is None or theirs.head == model.head:
        return None
    parts = {name.partition(".")[2]: name for name in _heads_tensors(checkpoint.names)}
    known = {part: name for part, name in parts.items() if part.startswith(_SHARED)}
    homes = {name: known.get(name.partition(".")[2]) for name in _heads_tensors(shapes)}
    return {name: home if home and checkpoint.shape(home) == shapes[name] else None for name, home in homes.items()}


def _with_head(stored: Weights, new: Weights, fresh: dict[str, str | None]) -> Weights:
    def read(name: str, part: TensorSlice) -> torch.Tensor:
        if name not in fresh:
            return stored(name, part)
        home = fresh[name]
        return new(name, part) if home is None else stored(home, part)

    return read


def require_function(model: ModelConfig, checkpoint: Checkpoint, *, head: bool = True) -> None:
    """Refuse weights that were trained as another function than `model` makes of them; warn of other rotary settings,
    by which a context may be stretched.

    Args:
        head: whether the heads are compared too.

    Raises:
        UserError: names the settings that differ, both values, and what to set.
    """
    if not checkpoint.manifest.config:
        return
    theirs = _model_of(checkpoint)
    theirs = theirs.encoder_alone if _leaves_decoder(model, theirs) else theirs
    differences = function_differences(model, theirs, head=head)
    rotary = {key: values for key, values in differences.items() if key.startswith(_STRETCHING)}
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
