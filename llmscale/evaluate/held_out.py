"""A task made of a run's own held-out pairs or dialogues: what the model writes of each source, beside the target, or
of each dialogue, beside the assistant's last turn."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.base.durable import read_json, write_json
from data_pipeline.base.encodings import is_unicode
from data_pipeline.base.errors import UserError, writing
from data_pipeline.finite.heldout import heldout_digest, heldout_pairs
from data_pipeline.objectives.chat import ChatObjective
from data_pipeline.sources.records import SourceRecord
from data_pipeline.tokenizer import Tokenizer
from llmscale.config import RunConfig
from llmscale.config.system import ANSWER_TOKENS, HELD_OUT, GenerateConfig
from llmscale.distributed.agreement import on_rank_zero
from llmscale.evaluate.held_out_dialogues import HeldOutDialogues
from llmscale.evaluate.metrics import check_metric
from llmscale.evaluate.tasks import Task
from llmscale.evaluate.tasks.data import Records
from llmscale.evaluate.tasks.kinds.generate import GenerateTask

_WHERE = "evaluation.generate"
Pairs = list[tuple[str, str]]


def held_out_task(config: RunConfig, asked: GenerateConfig, tokenizer: Tokenizer, cache: Path | None = None) -> Task:
    """The task `held-out`; collective.

    Args:
        config: of the run; its held-out pairs are read by rank 0.
        cache: where the chosen ones are kept for the next start; None: nowhere.

    Raises:
        UserError: the run trains on no pairs or dialogues or holds none out, or a metric is not one of generated text.
    """
    objective = config.objective
    if objective.answers is None:
        raise UserError(
            f"{_WHERE} is given, but objective.name is {objective.name}, which has no sources and targets; leave it"
            f" out, or set objective.name to seq2seq or chat"
        )
    if not (config.data.holdout or config.data.evaluation):
        raise UserError(f"{_WHERE} is given, but nothing is held out; set data.holdout or data.evaluation")
    for number, metric in enumerate(asked.metrics):
        try:
            check_metric(metric, "generate")
        except UserError as error:
            raise UserError(f"{_WHERE}.metrics.{number}: {error}") from None
        if metric in asked.metrics[:number]:
            raise UserError(f"{_WHERE}.metrics names {metric} twice; name it once")
    chat = objective.answers == "dialogue"
    most_new = asked.max_new_tokens or objective.answer_length or ANSWER_TOKENS
    settings = GenerateTask.model_validate(
        {
            "kind": "generate",
            "description": "Last answers of held-out dialogues" if chat else "Targets of held-out pairs",
            "data": {"home": "the run", "fields": ["source", "target"]},
            "context": "{{ source }}",
            "references": ["{{ target }}"],
            "until": [],
            "max_new_tokens": most_new,
            "overflow": "as-trained",
            "metrics": asked.metrics,
        }
    )
    pairs = on_rank_zero(lambda: _pairs(config, asked.examples, tokenizer, cache, most_new))
    return Task(Path(_WHERE), HELD_OUT, settings, _HeldOut(pairs))


class _HeldOut:
    """The pairs as records of a task."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def read(self, split: str, required: Sequence[str], wanted: Sequence[str], files: Sequence[str] = ()) -> Records:
        """As `TaskSource.read`."""
        records = [
            SourceRecord({"source": source, "target": target}, "what is held out", number)
            for number, (source, target) in enumerate(self._pairs, start=1)
        ]
        return Records(records, "what the run holds out")


def _pairs(config: RunConfig, most: int | None, tokenizer: Tokenizer, cache: Path | None, most_new: int) -> Pairs:
    """The chosen pairs, as the cache has them where it does."""
    if isinstance(config.objective, ChatObjective):
        room = config.model.max_positions - min(most_new, config.model.max_positions // 2)
        dialogues = HeldOutDialogues(config.data, config.objective, tokenizer, room)
        form, found = f"-{dialogues.form}", dialogues.pairs()
    else:
        form, found = "", heldout_pairs(config.data, tokenizer)
    if cache is None:
        return _chosen(found, most)
    path = cache / f"held-out-{heldout_digest(config.data, tokenizer)}{form}-{most}.json"
    kept = read_json(path)
    if isinstance(kept, dict) and kept.get("digest") == _digest(kept.get("pairs")):
        return [(source, target) for source, target in kept["pairs"]]
    pairs = _chosen(found, most)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        write_json(path, {"digest": _digest([list(pair) for pair in pairs]), "pairs": pairs})
    return pairs


def _digest(pairs: object) -> str:
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


def _chosen(found: Iterator[tuple[str, str]], most: int | None) -> Pairs:
    """Held-out pairs in their order; of more than `most` those whose texts have the smallest hashes."""
    usable = (pair for pair in found if pair[0].strip() and is_unicode("".join(pair)))
    if most is None:
        pairs = list(usable)
    else:
        least = heapq.nsmallest(most, enumerate(usable), key=lambda numbered: _rank(numbered[1]))
        pairs = [pair for _, pair in sorted(least)]
    if not pairs:
        raise UserError(
            f"{_WHERE} is given, but no held-out pair has a source, or no held-out dialogue an answer whose prompt has"
            f" room in the context; name other files in data.evaluation"
        )
    return pairs


def _rank(pair: tuple[str, str]) -> bytes:
    return hashlib.blake2b("\0".join(pair).encode(), digest_size=8).digest()
