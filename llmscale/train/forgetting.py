"""Held-out text by source, of which a fine-tuned model may know less than the one that it began as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import warn
from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.finite.heldout import EvaluationSet, build_evaluation_set, open_evaluation_set
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.tokenizer import Tokenizer
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.agreement import on_rank_zero, together
from llmscale.train.inherited import begun_from
from llmscale.train.run_directory import RunDirectory

_WHERE = "finetune.forgetting"


def forgetting_sets(config: RunConfig, run: RunDirectory, tokenizer: Tokenizer) -> dict[str, EvaluationSet]:
    """The documents of each source of `finetune.forgetting`, read as `train.init_from` was trained on them; collective.

    Raises:
        UserError: a file that is not there or holds no text.
    """
    if config.finetune is None or not config.finetune.forgetting:
        return {}
    theirs = on_rank_zero(lambda: _pretraining(config))
    objective = config.objective if theirs is None else theirs.objective
    chosen = dict(_chosen(config, theirs))
    return {name: _set(data, run, tokenizer, objective, config.run.seed) for name, data in chosen.items()}


def _pretraining(config: RunConfig) -> RunConfig | None:
    """The config of the run that this one begins from; None where that is gone or of another version."""
    checkpoint = begun_from(config)
    try:
        found = None if checkpoint is None else parse_config(dict(checkpoint.manifest.config))
    except UserError:
        found = None
    if found is None and config.finetune is not None and config.finetune.forgetting == "pretraining":
        warn(f"{_WHERE} is left out, since train.init_from {config.train.init_from} has no config that can be read")
    return found


def _chosen(config: RunConfig, theirs: RunConfig | None) -> Iterator[tuple[str, DataConfig]]:
    """Each source's name, and a data section that holds out its documents alone."""
    assert config.finetune is not None
    given = config.finetune.forgetting
    held_out: dict[str, list[SourceConfig]] = {}
    if given != "pretraining":
        data, evaluation = config.data, _by_name(given)
    elif theirs is None:
        return
    else:
        data = theirs.data.model_copy(update={"sequence_length": config.data.sequence_length})
        held_out = _by_name(data.sources) if data.holdout else {}
        evaluation = _by_name(data.evaluation)
    for name in {**evaluation, **held_out}:
        own: dict[str, Any] = {"evaluation": evaluation.get(name, [])}
        own |= {"sources": held_out[name]} if name in held_out else {"holdout": 0.0}
        yield name, data.model_copy(update=own)


def _by_name(sources: Iterable[SourceConfig]) -> dict[str, list[SourceConfig]]:
    """Sources that are called the same are measured together."""
    named: dict[str, list[SourceConfig]] = {}
    for source in sources:
        named.setdefault(_named(source), []).append(source)
    return named


def _named(source: SourceConfig) -> str:
    return source.label or (source.paths[0] if source.paths else source.name or "text")


def _set(
    data: DataConfig, run: RunDirectory, tokenizer: Tokenizer, objective: ObjectiveConfig, seed: int
) -> EvaluationSet:
    def write() -> str:
        made = build_evaluation_set(data, tokenizer, run.cache, objective=objective, seed=seed, where=_WHERE)
        return made.directory.name

    name = on_rank_zero(write)
    return together(lambda: open_evaluation_set(run.cache / name, data, tokenizer, objective=objective, seed=seed))
