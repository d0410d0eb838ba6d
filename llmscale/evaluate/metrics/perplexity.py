"""Perplexity by target, token, word and byte, and bits per byte: nats of all records over units of all records."""

from __future__ import annotations

import math
from collections.abc import Callable

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import Options, Ratio


def _exponential(nats: float) -> float:
    """e to a power, infinite where that is beyond floating point."""
    return math.exp(nats) if nats < math.log(1.7e308) else math.inf


def _tokens(record: Record) -> int:
    return sum(len(answer.ids) for answer in record.answers)


def _bytes(record: Record) -> int:
    """Of the source text, which is longer than what was scored where detokenising changed it."""
    return record.scored_bytes or sum(answer.bytes for answer in record.answers)


def _words(record: Record) -> int:
    return record.scored_words or 0  # the metric needs it


def _per(
    name: str,
    summary: str,
    units: Callable[[Record], int],
    kinds: tuple[str, ...] = ("perplexity", "likelihood"),
    needs: tuple[str, ...] = ("answers",),
    bits: bool = False,
) -> Ratio:
    """Perplexity by a unit, or its logarithm in bits."""

    def terms(record: Record, options: Options) -> tuple[float, float]:
        nats = -math.fsum(answer.total for answer in record.answers)
        return nats / math.log(2) if bits else nats, units(record)

    transform, least = (float, 0.0) if bits else (_exponential, 1.0)
    return Ratio(name, summary, kinds, needs, False, (least, math.inf), terms=terms, transform=transform)


METRICS = (
    _per(
        "target_perplexity",
        "exp of the mean nats of a whole target (lm-eval's perplexity of LAMBADA)",
        lambda record: 1,
        kinds=("likelihood",),
    ),
    _per("token_perplexity", "exp of the nats a token; depends on the tokenizer", _tokens),
    _per(
        "word_perplexity",
        "exp of the nats a word of the source",
        _words,
        kinds=("perplexity",),
        needs=("answers", "words"),
    ),
    _per("byte_perplexity", "exp of the nats a byte of the source", _bytes),
    _per("bits_per_byte", "bits a byte of the source, the same unit for every tokenizer", _bytes, bits=True),
)
