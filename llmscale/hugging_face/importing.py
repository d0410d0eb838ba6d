"""`llmscale import`: a Hugging Face directory becomes a checkpoint of weights, tokenizer and config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from data_pipeline.base.errors import UserError, writing
from data_pipeline.objectives.contrastive import NAME as CONTRASTIVE
from data_pipeline.objectives.contrastive import ContrastiveObjective
from data_pipeline.tokenizer.base import StoredTokenizer
from llmscale.checkpoint.manifest import TOKENIZER, RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import ModelConfig, RunConfig, identity, parse_config
from llmscale.config.generation import KEYS
from llmscale.families.hugging_face import HuggingFace
from llmscale.hugging_face.adapters import CONFIG as ADAPTER
from llmscale.hugging_face.chat import keep_chat
from llmscale.hugging_face.classes import OWN, recognise
from llmscale.hugging_face.conventions import read_conventions
from llmscale.hugging_face.files import CONFIG, new_folder, read_json, require_free
from llmscale.hugging_face.sentence_transformers import read_layout
from llmscale.hugging_face.tensors import TensorFolder
from llmscale.hugging_face.tokenizers import import_tokenizer
from llmscale.hugging_face.weights import VOCABULARY, Move, Shapes, padded, plan, shapes_of
from llmscale.model.heads import all_heads, heads_of
from llmscale.objectives import settings_for
from llmscale.parallel.init import drawn
from llmscale.slices.tensor_slice import TensorSlice

_HEADS = tuple(f"{head.attribute}." for head in all_heads())
"""What our names of the heads' tensors begin with; all others are the body's."""


def import_directory(
    folder: Path, out: Path, *, allow_pickle: bool = False, tokenizer: Path | None = None, new_head: bool = False
) -> list[str]:
    """Write the checkpoint `out` from the Hugging Face directory `folder`; it appears whole or not at all.

    Args:
        allow_pickle: read `pytorch_model.bin` where there is nothing better.
        tokenizer: the folder of the tokenizer's files, or `bytes`; `folder` when not given.
        new_head: draw the tensors of the heads that `folder` lacks, as those of a fresh model.

    Returns:
        Sentences for the user.

    Raises:
        UserError: `out` exists; no config.json, or of an unknown model; tensors that are missing, unexpected or of
            another shape; no tokenizer, or one with more tokens than the model.
    """
    require_free(out)
    fix = "give a Hugging Face model directory"
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; {fix}")
    path = folder / CONFIG
    if not path.is_file() and (folder / ADAPTER).is_file():
        raise UserError(
            f"{folder} holds a PEFT adapter without the model that it belongs to; import that first, and give it with"
            f" --base"
        )
    values = read_json(path, fix)
    tensors = TensorFolder(folder, allow_pickle)
    own = values.get("model_type") == OWN
    # What older files say of generation says nothing of the model.
    described = {key: value for key, value in values.items() if key not in KEYS}
    # A head that is to be drawn takes the place of what makes vectors.
    embedding, beside = (None, []) if own or new_head else read_layout(folder)
    source, notes = _own_source(values, path, tensors) if own else _source(described, path, tensors, embedding)
    notes += beside
    lacking = ", ".join(source.lacking)
    if lacking and not new_head:
        raise UserError(
            f"{folder} lacks {lacking} of the model's head; give --new-head to draw what is missing, or import a"
            f" folder that holds all of it"
        )
    if new_head:
        notes.append(f"--new-head drew {lacking or f'nothing, since {folder} holds all of the head'}")
    with new_folder(out) as temporary, writing(out):
        made = import_tokenizer(folder, values, temporary / TOKENIZER, out / TOKENIZER, tokenizer)
        if made.tokenizer.vocab_size > source.vocab_size:
            raise UserError(
                f"the tokenizer of {tokenizer or folder} has {made.tokenizer.vocab_size} tokens, but the model's"
                f" vocab_size is {source.vocab_size}; give the tokenizer that belongs to the model"
            )
        if not own:
            place, architecture = tokenizer or folder, _config(source.model).architecture
            kept, said = read_conventions(
                folder, place, values, made.tokenizer, architecture, source.vocab_size, source.predicts
            )
            made.tokenizer.conventions = kept
            made.tokenizer.save(temporary / TOKENIZER)
            notes += said
        keep_chat(folder, tokenizer, temporary / TOKENIZER)
        config = _run_config(source, made.tokenizer, made.settings, out)
        files = {file.name: file.read_bytes() for file in (temporary / TOKENIZER).iterdir()}
        state = RunState(
            samples=0,
            config=config.model_dump(mode="json"),
            identity=identity(config),
            drawn=sorted(source.lacking.values()),
        )
        write_whole(temporary, source.tensors(config), state, files)
    count = sum(prod(shape) for shape in source.shapes.values())
    kind = "llmscale model" if own else f"{source.model['family']} model"
    said = [f"{out}: a {kind} of {count:,} parameters and a tokenizer of {made.tokenizer.vocab_size:,} tokens"]
    return [*said, *(f"note: {note}" for note in (*notes, *made.notes))]


@dataclass(frozen=True)
class _Source:
    """Where the tensors of a model come from."""

    model: dict[str, Any]
    """The model section."""
    objective: dict[str, Any] | None
    """The objective section, where the files say what the head predicts."""
    vocab_size: int
    shapes: Shapes
    """Of ours, unpadded."""
    folder: TensorFolder
    names: dict[str, str]
    """Names in the files by the names in the weight map."""
    moves: list[Move] | None
    """None: the files have our own names."""
    lacking: dict[str, str]
    """Our names of the heads' tensors that are not in the files, by those in the weight map."""

    @property
    def predicts(self) -> bool:
        """Whether it came with a head that predicts of texts."""
        return self.objective is not None and self.objective["name"] != CONTRASTIVE and not self.lacking

    def tensors(self, config: RunConfig) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, padded; one row of the weight map is in memory at a time."""
        rows = config.model.padded_vocab(self.vocab_size)
        for ours, values in self._unpadded():
            for name, tensor in zip(ours, values, strict=True):
                yield name, padded(tensor, rows) if name in VOCABULARY else tensor
        fresh = drawn(config.model, config.run.seed)
        for name in self.lacking.values():
            shape = (rows, *self.shapes[name][1:]) if name in VOCABULARY else self.shapes[name]
            yield name, fresh(name, TensorSlice.whole(shape)).view(shape)

    def _unpadded(self) -> Iterator[tuple[tuple[str, ...], list[Tensor]]]:
        """Those in the files."""
        if self.moves is None:
            for name in self.shapes:
                if name not in self.lacking:
                    yield (name,), [self.folder.read(name)]
            return
        for move in self.moves:
            if move.theirs[0] not in self.lacking:
                yield move.ours, move.to_ours([self.folder.read(self.names[name]) for name in move.theirs])


def _source(
    values: dict[str, Any], path: Path, folder: TensorFolder, embedding: ContrastiveObjective | None
) -> tuple[_Source, list[str]]:
    found = recognise(values, path, embedding)
    table, model = found.table, dict(found.model)
    body = heads_of(_config(model))[0].body(table)
    names = _known_names(table, folder, body)
    table = _of_body(table, body)
    _stand_in(table.copies or {}, names)
    for setting, tensor in {} if "head" in model else (table.present or {}).items():
        model[setting] = model[setting] or tensor in names
    notes = list(found.notes)
    config = _config(model)
    _require_layers(config, folder, config.experts.count if config.experts else 0)
    tied = {} if "head" in model else _tie(table, model, folder, names, notes)
    config = _config(model)
    shapes = shapes_of(config, model["vocab_size"])
    moves = plan(table, config, shapes)
    expected = {name: move.shape for move in moves for name in move.theirs}
    patterns = (*table.dropped, *heads_of(config)[0].dropped(table))
    left_out = sorted(
        name for name in names.keys() - expected.keys() if any(re.fullmatch(pattern, name) for pattern in patterns)
    )
    if left_out:
        more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
        notes.append(f"{', '.join(left_out[:4])}{more} not used: {table.classes[0]} has no such part")
    names = {name: stored for name, stored in names.items() if name not in left_out}
    unexpected = _unexpected(table, folder, names, expected, tied)
    heads = {move.theirs[0]: move.ours[0] for move in moves if move.ours[0].startswith(_HEADS)}
    lacking = _lacking(folder, names, expected, unexpected, heads)
    return _Source(model, found.objective, model["vocab_size"], shapes, folder, names, moves, lacking), notes


def _of_body(table: HuggingFace, body: str) -> HuggingFace:
    """A table whose copies and ignored tensors are those of a class whose body's names begin with `body`."""
    if body == table.prefix:
        return table
    copies = {body + name.removeprefix(table.prefix): name for name in table.copies or {}}
    originals = {copy: body + (table.copies or {})[name].removeprefix(table.prefix) for copy, name in copies.items()}
    ignored = tuple(re.escape(body) + pattern.removeprefix(re.escape(table.prefix)) for pattern in table.ignored)
    return replace(table, copies=originals, ignored=ignored)


def _tie(
    table: HuggingFace, model: dict[str, Any], folder: TensorFolder, names: dict[str, str], notes: list[str]
) -> dict[str, str]:
    """The head's tensor that stands for the embedding's, by its own; unties the model where both are stored and
    differ."""
    head, embedding = _head(table, model)
    if _config(model).tied_embeddings:
        _stand_in({head: embedding}, names)
    if _config(model).tied_embeddings and head in names and not _equal(folder, names, head, embedding):
        # As transformers does: what is stored counts for more than what config.json says.
        model["tied_embeddings"] = False
        notes.append(f"{head} is stored and differs from {embedding}, so the head is not tied")
    return {head: embedding} if _config(model).tied_embeddings else {}


def _own_source(values: dict[str, Any], path: Path, folder: TensorFolder) -> tuple[_Source, list[str]]:
    """A directory that `llmscale export` wrote of a model that transformers has no class for."""
    model, vocab_size = values.get("model"), values.get("vocab_size")
    if not isinstance(model, dict) or type(vocab_size) is not int or not 0 < vocab_size < 2**31:
        raise UserError(
            f"{path} has no model section and vocab_size, as `llmscale export` writes them; export it again"
        )
    try:
        config = ModelConfig.model_validate(model)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise UserError(f"{path}: model.{where}: {problem['msg']}; export it again") from None
    _require_layers(config, folder)
    shapes = shapes_of(config, vocab_size)
    names = {name: name for name in folder.names}
    heads = {name: name for name in shapes if name.startswith(_HEADS)}
    lacking = _lacking(folder, names, shapes, set(names) - set(shapes), heads)
    section = values.get("objective")
    objective = section if isinstance(section, dict) and config.head is not None else None
    described = {**model, "vocab_size": vocab_size}
    return _Source(described, objective, vocab_size, shapes, folder, names, None, lacking), []


def _require_layers(model: ModelConfig, folder: TensorFolder, experts: int = 0) -> None:
    """Refuse numbers of layers and experts for which there are not enough tensors, before a model of them is built.

    Args:
        experts: how many of a layer there are tensors for, each with its own.
    """
    layers = max(model.layers, model.encoder_layer_count)
    if max(layers, sum(map(model.has_experts, range(layers))) * experts) > len(folder.names):
        more = f" with {experts} experts" if experts else ""
        raise UserError(
            f"{folder.folder} holds {len(folder.names)} tensors, too few for the {layers} layers{more} of its {CONFIG};"
            f" give the {CONFIG} that belongs to it"
        )


def _config(model: dict[str, Any]) -> ModelConfig:
    return ModelConfig.model_validate(model)


def _known_names(table: HuggingFace, folder: TensorFolder, body: str) -> dict[str, str]:
    """Names in the files by those of today's transformers, in the class whose body's names begin with `body`."""
    found = {}
    tops = {row.theirs.partition(".")[0] for row in table.weights}
    prefixed = any(name.startswith(table.prefix) for name in folder.names)
    headless = bool(table.prefix and body) and not prefixed and not any(name.startswith(body) for name in folder.names)
    for name in folder.names:
        today = table.prefix + name if headless and name.partition(".")[0] not in tops else name
        today = today if body else today.removeprefix(table.prefix)
        for pattern, replacement in table.renames:
            today = re.sub(pattern, replacement, today)
        found[today] = name
    return found


def _stand_in(copies: Mapping[str, str], names: dict[str, str]) -> None:
    """Let what is stored as a copy alone, such as `cls.predictions.decoder.bias`, stand for the original."""
    for copy, original in copies.items():
        if copy in names and original not in names:
            names[original] = names.pop(copy)


def _head(table: HuggingFace, model: dict[str, Any]) -> tuple[str, str]:
    """Their names of the head's and the embedding's weights."""
    config = _config({**model, "tied_embeddings": False})
    by_ours = {move.ours[0]: move.theirs[0] for move in plan(table, config, shapes_of(config, model["vocab_size"]))}
    return by_ours["head.weight"], by_ours["embedding.weight"]


def _equal(folder: TensorFolder, names: dict[str, str], first: str, second: str) -> bool:
    if second not in names or folder.shape(names[first]) != folder.shape(names[second]):
        return False
    return bool(folder.read(names[first]).equal(folder.read(names[second])))


def _unexpected(
    table: HuggingFace,
    folder: TensorFolder,
    names: dict[str, str],
    expected: Shapes,
    tied: dict[str, str],
) -> set[str]:
    """Tensors that the model does not have; refuses those that should be copies of others and differ."""
    copies = {**(table.copies or {}), **tied}
    unexpected = set()
    for name in sorted(set(names) - set(expected)):
        if name in copies:
            if not _equal(folder, names, name, copies[name]):
                raise UserError(
                    f"{names[name]} in {folder.folder} differs from {copies[name]}, of which it should be a copy;"
                    f" import a model where they are tied"
                )
        elif not any(re.fullmatch(pattern, name) for pattern in table.ignored):
            unexpected.add(name)
    return unexpected


def _lacking(
    folder: TensorFolder, names: dict[str, str], expected: Shapes, unexpected: set[str], heads: dict[str, str]
) -> dict[str, str]:
    """Those of `heads`, our names by the weight map's, that a directory lacks; refuses it unless it holds all other
    tensors in the expected shapes and nothing else."""
    missing = sorted(set(expected) - set(names) - set(heads))
    if missing:
        raise UserError(
            f"{folder.folder} lacks the tensor {missing[0]} of shape {list(expected[missing[0]])}"
            f"{_more(missing)}, which the model of its {CONFIG} has; import a folder that holds all of it"
        )
    if unexpected:
        first = min(unexpected)
        raise UserError(
            f"{folder.folder} has the tensor {names[first]} of shape {list(folder.shape(names[first]))}"
            f"{_more(unexpected)}, which the model of its {CONFIG} does not have; give the {CONFIG} that belongs to it"
        )
    for name, shape in expected.items():
        stored = folder.shape(names[name]) if name in names else shape
        if stored != shape:
            raise UserError(
                f"{names[name]} in {folder.folder} has shape {list(stored)}, but {list(shape)} by its {CONFIG};"
                f" give the {CONFIG} that belongs to it"
            )
    return {name: heads[name] for name in sorted(heads) if name not in names}


def _more(names: set[str] | list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _run_config(source: _Source, tokenizer: StoredTokenizer, settings: dict[str, Any], out: Path) -> RunConfig:
    """A whole config around the model: enough to use it, and to begin a fine-tuning config from."""
    model = _config(source.model)
    data = {
        "sources": [{"kind": "text", "paths": ["corpus/*.txt"]}],
        "tokenizer": settings,
        "sequence_length": min(model.max_positions, 1024),
    }
    raw = {
        "run": {"directory": f"runs/{out.name}"},
        "data": data,
        "model": source.model,
        "objective": source.objective or settings_for(model, tokenizer.special),
    }
    return parse_config(raw, origin=str(out))
