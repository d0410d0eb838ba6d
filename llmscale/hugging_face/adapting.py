"""`llmscale export --adapter` and `llmscale import --base`: a checkpoint's low-rank factors alone, in PEFT's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipeline.base.errors import UserError, writing
from data_pipeline.tokenizer import load_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.merge import base_names
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.checkpoint.whole import write_whole
from llmscale.config import RunConfig, identity, parse_config
from llmscale.families.hugging_face import HuggingFace
from llmscale.finetune.trained import names_of, training_of
from llmscale.hugging_face.adapters import Adapter, Origin, base_digest, read_adapter, write_adapter
from llmscale.hugging_face.classes import Misfit
from llmscale.hugging_face.exporting import fitting_class
from llmscale.hugging_face.factors import Factors, Theirs, modules_of, to_ours, to_theirs, with_rank
from llmscale.hugging_face.files import new_folder, require_free
from llmscale.hugging_face.weights import VOCABULARY, Move, Shapes, padded, plan, shapes_of
from llmscale.model.factors import DOWN, MAGNITUDE, UP, is_factor, targeted

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""PEFT's task by the end of a class's name."""


@dataclass(frozen=True)
class _Base:
    """The model that factors belong to, and its names in transformers."""

    checkpoint: Checkpoint
    config: RunConfig
    vocab_size: int
    table: HuggingFace
    written: dict[str, Any]
    """Its config.json."""
    shapes: Shapes
    """Of our tensors without factors, unpadded."""
    moves: list[Move]

    @staticmethod
    def of(path: Path) -> _Base:
        """That of a checkpoint, or of the newest intact one of a run directory."""
        checkpoint = newest_intact(path)
        config = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path))
        tokenizer = load_tokenizer(checkpoint.tokenizer)
        fitting = fitting_class(config, tokenizer)
        if isinstance(fitting, Misfit):
            raise UserError(
                f"transformers has no class for the model of {checkpoint.path} (nearest is {fitting.table.classes[0]},"
                f" but {fitting.reason}), so that PEFT's format has no names for its layers; export it merged, without"
                f" --adapter"
            )
        table, written = fitting
        vocab_size = config.model.vocabulary(tokenizer.vocab_size)
        shapes = shapes_of(config.model.plain, vocab_size)
        moves = plan(table, config.model.plain, shapes)
        return _Base(checkpoint, config, vocab_size, table, written, shapes, moves)

    def read(self, name: str) -> Tensor:
        """A tensor, unpadded."""
        return self.checkpoint.full(name)[: self.shapes[name][0]]

    def digest(self, trained: set[str]) -> str:
        """Of what was not trained."""
        return base_digest([name for name in base_names(self.checkpoint) if name not in trained], self.read)


def export_adapter(path: Path, folder: Path) -> list[str]:
    """Write the factors of a checkpoint (or of the newest intact one of a run directory), and what was trained beside
    them, as the PEFT adapter `folder`, which appears whole or not at all.

    Returns:
        Sentences for the user.

    Raises:
        UserError: no intact checkpoint, one without factors or of a model that transformers has no class for, or
            `folder` exists.
    """
    require_free(folder)
    base = _Base.of(path)
    checkpoint, config = base.checkpoint, base.config
    lora = config.model.lora
    if lora is None:
        raise UserError(
            f"{checkpoint.path} has no adapter, since it was trained without finetune.lora; leave --adapter out"
        )
    held = dict(_held(checkpoint))
    modules: list[Theirs] = []
    for move in base.moves:
        if any(layer in held for layer in modules_of(move)):
            outputs = {layer: base.shapes[f"{layer}.weight"][-2] for layer in modules_of(move)}
            modules += to_theirs(move, held, outputs, lambda layer: base.read(f"{layer}.weight").norm(dim=1))
    trained = {
        name for name in training_of(config.model, config.finetune, checkpoint.names).names if not is_factor(name)
    }
    others: dict[str, Tensor] = {}
    for move in base.moves:
        if trained & set(move.ours):
            others.update(zip(move.theirs, move.to_theirs([base.read(name) for name in move.ours]), strict=True))
    origin = Origin(base.digest(trained), lora, {each.module: each.columns for each in modules})
    name = base.written["architectures"][0]
    with new_folder(folder) as temporary, writing(folder):
        write_adapter(
            temporary,
            modules,
            others,
            lora,
            base=config.train.init_from or "",
            task=next((task for end, task in _TASKS.items() if name.endswith(end)), None),
            transposed=any(row.transposed for row in base.table.weights),
            origin=origin,
        )
    beside = f" and {len(others)} tensors trained beside" if others else ""
    kind = "DoRA" if lora.dora else "LoRA"
    return [f"{folder}: a {kind} adapter of {name} for {len(modules)} modules{beside}"]


def _held(checkpoint: Checkpoint) -> Iterator[tuple[str, Factors]]:
    """Factors by layer."""
    for name in checkpoint.names:
        layer, _, own = name.rpartition(".")
        if own == DOWN:
            dora = f"{layer}.{MAGNITUDE}" in checkpoint.names
            magnitude = checkpoint.full(f"{layer}.{MAGNITUDE}") if dora else None
            yield layer, Factors(checkpoint.full(name), checkpoint.full(f"{layer}.{UP}"), magnitude)


def import_adapter(folder: Path, out: Path, base_path: Path) -> list[str]:
    """Write the checkpoint `out` of a PEFT adapter and the checkpoint that it belongs to; it appears whole or not at
    all.

    Args:
        base_path: a checkpoint or run directory of the base model.

    Returns:
        Sentences for the user.

    Raises:
        UserError: `out` exists, no intact base, a base that has factors itself, an adapter that cannot be read, or one
            that was made for another base.
    """
    require_free(out)
    adapter = read_adapter(folder)
    base = _Base.of(base_path)
    if base.config.model.lora is not None:
        raise UserError(
            f"{base.checkpoint.path} has an adapter itself; give the checkpoint that it started from, or merge it with"
            f" llmscale checkpoint merge"
        )
    columns = None if adapter.origin is None else adapter.origin.columns
    held: dict[str, Factors] = {}
    for move, factors in _by_move(adapter, base).items():
        names = [name.removesuffix(".weight") for name in move.theirs]
        held.update(to_ours(move, factors, None if columns is None else columns.get(names[0])))
    if columns is None:
        held = {layer: with_rank(each, adapter.lora.rank) for layer, each in held.items()}
    others = _others(adapter, base)
    if adapter.origin is not None and adapter.origin.base != (found := base.digest(set(others))):
        raise UserError(
            f"{folder} belongs to another base: it was trained on weights of digest {adapter.origin.base}, but those of"
            f" {base.checkpoint.path} are {found}; give the checkpoint that it was trained from"
        )
    config = _config(adapter, base, held)
    _require_whole(adapter, config, held)
    state = RunState(
        samples=0,
        config=config.model_dump(mode="json"),
        identity=identity(config),
        drawn=[name for name in base.checkpoint.manifest.drawn if name not in others],
    )
    with new_folder(out) as temporary, writing(out):
        files = {file.name: file.read_bytes() for file in base.checkpoint.tokenizer.iterdir()}
        write_whole(temporary, _tensors(base, held, others), state, files)
    kind = "DoRA" if adapter.lora.dora else "LoRA"
    beside = f" and {len(others)} tensors that were trained beside" if others else ""
    return [f"{out}: {base.checkpoint.path} with a {kind} adapter for {len(held)} layers{beside}"]


def _by_move(adapter: Adapter, base: _Base) -> dict[Move, list[Factors]]:
    """The factors of all modules of each move that has some."""
    known = {name.removesuffix(".weight"): move for move in base.moves if modules_of(move) for name in move.theirs}
    given = {}
    for stored, factors in adapter.factors.items():
        name = stored if stored in known else f"{base.table.prefix}{stored}"
        move = known.get(name)
        if move is None:
            raise UserError(
                f"{adapter.folder} has factors for {stored}, which {base.written['architectures'][0]} of"
                f" {base.checkpoint.path} does not have; give the base that the adapter was trained on"
            )
        outputs, inputs = move.shape[::-1] if move.row.transposed else move.shape
        found = factors.up.shape[0], factors.down.shape[1]
        if found != (outputs, inputs):
            raise UserError(
                f"{adapter.folder} has factors of {found[0]} outputs and {found[1]} inputs for {stored}, but that of"
                f" {base.checkpoint.path} has {outputs} and {inputs}; give the base that the adapter was trained on"
            )
        given[name] = factors
    moves: dict[Move, list[Factors]] = {}
    for name in given:
        move = known[name]
        names = [each.removesuffix(".weight") for each in move.theirs]
        lacking = [each for each in names if each not in given]
        if lacking:
            raise UserError(
                f"{adapter.folder} has factors for {name} but none for {lacking[0]}; give an adapter of all experts of"
                f" a layer"
            )
        moves[move] = [given[each] for each in names]
    return moves


def _others(adapter: Adapter, base: _Base) -> dict[str, Tensor]:
    """Our tensors that were trained beside the factors."""
    known = {name: move for move in base.moves for name in move.theirs}
    found: dict[str, Tensor] = {}
    for stored, tensor in adapter.others.items():
        name = stored if stored in known else f"{base.table.prefix}{stored}"
        move = known.get(name)
        if move is None or len(move.theirs) > 1 or tuple(tensor.shape) != move.shape:
            what = "no tensor of that name" if move is None else f"one of shape {list(move.shape)}"
            raise UserError(
                f"{adapter.folder} has {stored} of shape {list(tensor.shape)}, but {base.checkpoint.path} has {what};"
                f" give the base that the adapter was trained on (llmscale import --new-head makes one with a head)"
            )
        found.update(zip(move.ours, move.to_ours([tensor]), strict=True))
    return found


def _config(adapter: Adapter, base: _Base, held: Mapping[str, Factors]) -> RunConfig:
    """The base's, with the section that makes the factors."""
    if adapter.origin is not None:
        lora = adapter.origin.lora
    else:
        layers = [name.removesuffix(".weight") for name in base.shapes if "blocks" in name and name.endswith(".weight")]
        lora = adapter.lora.model_copy(update={"targets": _shortened(held, layers)})
    raw: dict[str, Any] = dict(base.checkpoint.manifest.config)
    raw["finetune"] = {"lora": lora.model_dump(mode="json")}
    raw["train"] = {**raw.get("train", {}), "init_from": str(base.checkpoint.path)}
    return parse_config(raw, origin=str(base.checkpoint.path))


def _require_whole(adapter: Adapter, config: RunConfig, held: Mapping[str, Factors]) -> None:
    """Refuse factors that are not those that the section in their file makes."""
    wanted = {name.rpartition(".")[0] for name in names_of(config.model) if name.endswith(f".{DOWN}")}
    rank = config.model.lora.rank if config.model.lora else 0
    odd = wanted ^ set(held) or {layer for layer, each in held.items() if each.down.shape[-2] != rank}
    if odd:
        raise UserError(
            f"{adapter.folder} says that it has factors of rank {rank} for {len(wanted)} layers, but holds others, of"
            f" {min(odd)} for one; download it again"
        )


def _shortened(held: Mapping[str, Factors], layers: list[str]) -> list[str]:
    """Targets that stand for these layers and no others: names of modules where all of a name have factors."""
    found = []
    for layer in held:
        short = layer.rpartition(".")[2]
        alike = targeted([short], layers)
        found.append(short if alike <= held.keys() else layer)
    return sorted(set(found))


def _tensors(base: _Base, held: Mapping[str, Factors], others: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    rows = base.config.model.padded_vocab(base.vocab_size)
    for name in base.checkpoint.names:
        if name in others:
            yield name, padded(others[name], rows) if name in VOCABULARY else others[name]
        else:
            yield name, base.checkpoint.full(name)
    for layer, factors in held.items():
        yield f"{layer}.{DOWN}", factors.down
        yield f"{layer}.{UP}", factors.up
        if factors.magnitude is not None:
            yield f"{layer}.{MAGNITUDE}", factors.magnitude
