"""Our models as a guest of lm-evaluation-harness, which then runs all its tasks on our scorers.

    python -m llmscale.evaluate.lm_eval run --model llmscale --model_args checkpoint=RUN --tasks lambada_openai

The harness finds models in a table of its own, so that this module registers the class and hands over to its command.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.reading.item import Item
from data_pipeline.reading.reader import Reader
from llmscale.distributed.ending import last_block
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.generation import ItemWriter
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.scorers import Length, Overflow, scorer_for
from llmscale.evaluate.scoring import BATCH_TOKENS, Asked, RowScorer, records_of
from llmscale.generate.prompts import reading_of
from llmscale.generate.settings import Settings

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise UserError("lm-evaluation-harness is not installed; run pip install 'llmscale[eval]'") from None

_GENERATED = 256
"""Most new tokens where a task does not say, as in the harness."""


@register_model("llmscale")
class Guest(LM):
    """A checkpoint of ours, asked by the harness."""

    def __init__(self, checkpoint: str, device: str = "cpu", dtype: str = "float32", scorer: str | None = None) -> None:
        """
        Args:
            checkpoint: a checkpoint or a run directory.
            device: as torch names it.
            dtype: as torch names it.
            scorer: how texts are scored; as suits the model when not given.

        Raises:
            UserError: no intact checkpoint, or a scorer that does not fit.
        """
        super().__init__()
        self._placed = place_whole(checkpoint, torch.device(device), getattr(torch, dtype))
        config = self._placed.config
        self._reader = Reader(self._placed.tokenizer, config.model.architecture, reading_of(config.objective))
        self._scorer = scorer_for(config.model, config.objective, scorer)
        self._rows = RowScorer(self._placed.scoring, config.model, self._placed.tokenizer, BATCH_TOKENS)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is what greedy decoding gives. What follows one context
        is asked for together, so that the context is read once."""
        items: list[Item] = []
        for context, group in itertools.groupby((request.args for request in requests), key=lambda pair: pair[0]):
            items.append(Item(len(items), (context,), tuple(continuation for _, continuation in group)))
        return [
            (answer.total, all(answer.greedy))
            for record in self._scored(items, "truncate-left")
            for answer in record.answers
        ]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in windows where it is longer than the model's context."""
        items = [Item(number, ("",), (request.args[0],)) for number, request in enumerate(requests)]
        return [record.answers[0].total for record in self._scored(items, "window")]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to one of the texts that end it."""
        written: dict[int, str] = {}
        asked = [(number, *request.args) for number, request in enumerate(requests)]
        for options, group in itertools.groupby(sorted(asked, key=lambda one: repr(one[2])), key=lambda one: one[2]):
            some = list(group)
            writer = ItemWriter(self._placed, _settings(options))
            items = [Item(number, (context,)) for number, context, _ in some]
            records = writer.records(writer.prompts(items, "truncate-left"), self._placed.scoring.grid)
            for record in itertools.chain.from_iterable(records):
                written[record.number] = record.generated[0]
        return [written[number] for number in range(len(requests))]

    def _scored(self, items: Sequence[Item], overflow: Overflow) -> list[Record]:
        scorer = self._scorer(self._reader, self._placed.config.model, Length(overflow))
        asked = [Asked(item, scorer.request(item)) for item in items]
        return list(itertools.chain.from_iterable(records_of(asked, self._rows)))


def _settings(options: dict[str, Any]) -> Settings:
    """The harness's settings of generation as ours."""
    until = options.get("until", [])
    sampled = options.get("do_sample", False)
    return Settings(
        max_new_tokens=int(options.get("max_gen_toks", options.get("max_new_tokens", _GENERATED))),
        temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(options.get("top_p", 1.0)),
        stop=tuple([until] if isinstance(until, str) else until),
    )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    with last_block():
        cli_evaluate()
