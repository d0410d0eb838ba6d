"""`llmscale export`: a checkpoint becomes a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError, writing
from data_pipeline.objectives.contrastive import NAME as CONTRASTIVE
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from data_pipeline.tokenizer.chat_files import carry_chat
from data_pipeline.tokenizer.frame import conventions_of, turn_end
from llmscale.checkpoint.merge import merged_tensor, require_same_outputs
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.config import ModelConfig, RunConfig, parse_config
from llmscale.config.generation import token_ids as token_values
from llmscale.families.hugging_face import HuggingFace
from llmscale.hugging_face.chat import export_chat
from llmscale.hugging_face.classes import OWN, Misfit, fit
from llmscale.hugging_face.files import CONFIG, GENERATION, new_folder, require_free
from llmscale.hugging_face.sentence_transformers import write_layout
from llmscale.hugging_face.tensors import DTYPES, parse_size, write_tensors
from llmscale.hugging_face.tokenizers import OWN_FOLDER, export_tokenizer, token_ids
from llmscale.hugging_face.weights import Move, Shapes, plan, shapes_of
from llmscale.objectives import model_side

_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def export_checkpoint(
    path: Path,
    folder: Path,
    *,
    dtype: str = "fp32",
    shard_size: str = "5GB",
    with_tokenizer: bool = True,
    largest_difference: float | None = None,
) -> list[str]:
    """Write a checkpoint (or the newest intact one of a run directory) as the Hugging Face directory `folder`.

    It appears whole or not at all. Low-rank factors are merged into the weights in fp32.

    Args:
        largest_difference: see `llmscale.checkpoint.merge.require_same_outputs`.
        dtype: what the tensors are written as, a key of `DTYPES`.
        shard_size: most bytes of a file of tensors, such as 5GB.
        with_tokenizer: write the tokenizer too.

    Returns:
        Sentences for the user.

    Raises:
        UserError: no intact checkpoint, `folder` exists, the tokenizer cannot be written in their form, or merging
            changes the outputs by too much.
    """
    require_free(folder)
    limit = parse_size(shard_size)
    checkpoint = newest_intact(path)
    config = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path))
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    model, vocab_size = config.model.plain, config.model.vocabulary(tokenizer.vocab_size)
    shapes = shapes_of(model, vocab_size)
    objective = config.objective.model_dump(mode="json")
    fitting = fitting_class(config, tokenizer)
    merging = []
    if config.model.lora is not None:
        merging = [require_same_outputs(checkpoint, DTYPES[dtype], largest_difference)]
    with new_folder(folder) as temporary, writing(folder):
        if isinstance(fitting, Misfit):
            moves = None
            said = (
                f"transformers has no class for this model (nearest is {fitting.table.classes[0]}, but"
                f" {fitting.reason}), so {folder} holds it under llmscale's own names, for `llmscale import` alone"
            )
            values = {"model_type": OWN, "vocab_size": vocab_size, "model": model.model_dump(mode="json")}
            if model.head is not None:
                values["objective"] = objective
        else:
            table, written = fitting
            moves = plan(table, model, shapes)
            values = {**written, "dtype": _TYPES[dtype]}
            said = f"{folder}: {written['architectures'][0]} in {dtype}"
        entries = _entries(moves, shapes)
        write_tensors(temporary, entries, _tensors(checkpoint, config.model, moves, shapes), DTYPES[dtype], limit)
        write_json(temporary / CONFIG, values)
        if isinstance(fitting, Misfit):
            (temporary / OWN_FOLDER).mkdir()
            tokenizer.save(temporary / OWN_FOLDER)
            carry_chat(checkpoint.tokenizer, temporary / OWN_FOLDER)
        else:
            _write_generation(temporary, model, tokenizer)
            if model.head is not None and model.head.name == CONTRASTIVE:
                write_layout(temporary, model)
            if with_tokenizer:
                source = model_side(config.objective).reading == "source"
                around = config.objective.around(tokenizer)
                export_tokenizer(tokenizer, temporary, model, source=source, around=around)
                export_chat(checkpoint.tokenizer, temporary)
    if drawn := checkpoint.manifest.drawn:
        theirs = {move.ours[0]: move.theirs[0] for move in moves or ()}
        named = ", ".join(theirs.get(name, name) for name in drawn)
        said_of = f"warning: {named} were drawn by `llmscale import --new-head` and never trained since"
        return [said, *merging, said_of]
    return [said, *merging]


def fitting_class(config: RunConfig, tokenizer: Tokenizer) -> tuple[HuggingFace, dict[str, Any]] | Misfit:
    """`fit` of a run's model without low-rank factors."""
    vocab_size = config.model.vocabulary(tokenizer.vocab_size)
    objective = config.objective.model_dump(mode="json")
    return fit(config.model.plain, vocab_size, lambda table: _ids(table, tokenizer), objective)


def _ids(table: HuggingFace, tokenizer: Tokenizer) -> dict[str, Any]:
    """Token ids for config.json, as they were read; of our own models null where there is none, since classes have
    defaults of their own."""
    kept = conventions_of(tokenizer)
    if kept is not None:
        return kept.config
    ids = token_ids(tokenizer)
    keys = {**{f"{role}_token_id": role for role in ("bos", "eos", "pad")}, **(table.token_ids or {})}
    return {key: ids.get(role) for key, role in keys.items()}


def _write_generation(folder: Path, model: ModelConfig, tokenizer: Tokenizer) -> None:
    """What `generate` of transformers begins and stops with, and its defaults as they were read."""
    kept = conventions_of(tokenizer)
    if kept is not None and (model.architecture != "encoder" or "_from_model_config" not in kept.generation):
        write_json(folder / GENERATION, _with_turn_end(kept.generation, tokenizer))
    if kept is not None or model.cannot_generate:
        return
    ids = token_ids(tokenizer)
    found = {f"{role}_token_id": ids[role] for role in ("bos", "eos", "pad") if role in ids}
    if model.architecture == "encoder_decoder" and "pad" in ids:
        found["decoder_start_token_id"] = ids["pad"]
    write_json(folder / GENERATION, _with_turn_end({**found, "max_length": model.max_positions}, tokenizer))


def _with_turn_end(generation: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """The token that ends the assistant's turns ends generation, too."""
    end, ends = turn_end(tokenizer), token_values(generation, "eos_token_id")
    return generation if end is None or end in ends else {**generation, "eos_token_id": [end, *ends]}


def _entries(moves: list[Move] | None, shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
    if moves is None:
        return list(shapes.items())
    return [(name, move.shape) for move in moves for name in move.theirs]


def _tensors(checkpoint: Checkpoint, model: ModelConfig, moves: list[Move] | None, shapes: Shapes) -> Iterator[Tensor]:
    """In the order of `_entries`; one row of the weight map is in memory at a time."""

    def ours(name: str) -> Tensor:
        stored = merged_tensor(checkpoint, name, model.lora)
        rows = shapes[name][0]
        if stored.shape[1:] != torch.Size(shapes[name][1:]) or len(stored) < rows:
            raise UserError(
                f"{name} has shape {list(stored.shape)} in {checkpoint.path}, but {list(shapes[name])} by its own"
                f" config; restore the checkpoint"
            )
        return stored[:rows]

    for move in moves or ():
        yield from move.to_theirs([ours(name) for name in move.ours])
    if moves is None:
        yield from map(ours, shapes)
