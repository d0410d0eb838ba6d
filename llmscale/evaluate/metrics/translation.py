"""BLEU, chrF and TER by sacrebleu, from 0 to 100, with its signature, which names the tokenization.

Post 2018 (sacrebleu), Papineni et al. 2002, Popović 2015 and 2017, Snover et al. 2006. All references count at once, as
these metrics define it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.metrics.base import Corpus, Option, Options, Statistic

_Scorer = Any
"""A metric object of sacrebleu, which is imported where it is used: it takes long."""


def _bleu(options: Options, sentence: bool = False) -> _Scorer:
    """A single sentence often has no 4-gram; as sacrebleu does, its orders end where its n-grams do."""
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=options["tokenize"], lowercase=options["lowercase"], effective_order=sentence)


def _chrf(options: Options, sentence: bool = False) -> _Scorer:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=options["word_order"], lowercase=options["lowercase"])


def _ter(options: Options, sentence: bool = False) -> _Scorer:
    from sacrebleu.metrics.ter import TER

    return TER(normalized=options["normalized"], asian_support=options["asian"], case_sensitive=options["case"])


def _streams(records: Sequence[Record]) -> tuple[list[str], list[list[str | None]]]:
    """What was written, and first, second, ... references, None where a record has fewer."""
    most = max(len(record.references) for record in records)
    references = [[*record.references, *[None] * (most - len(record.references))] for record in records]
    return [record.generated[0] for record in records], [list(stream) for stream in zip(*references, strict=True)]


def _metric(
    name: str,
    summary: str,
    scorer: Callable[..., _Scorer],
    options: Mapping[str, Option],
    higher_is_better: bool = True,
    greatest: float = 100.0,
) -> Corpus:
    def prepare(records: Sequence[Record], options: Options) -> Statistic:
        # Counts of each text, which the figure of any of them adds up; sacrebleu's own bootstrap does the same.
        corpus = scorer(options)
        counts = np.array(corpus._extract_corpus_statistics(*_streams(records)))

        def corpus_score(places: Sequence[int]) -> float:
            return float(corpus._compute_score_from_stats(counts[np.asarray(places)].sum(axis=0).tolist()).score)

        return corpus_score

    def sentence(record: Record, options: Options) -> float:
        return float(scorer(options, sentence=True).sentence_score(record.generated[0], record.references).score)

    def sign(records: Sequence[Record], options: Options) -> str:
        corpus = scorer(options)
        corpus.corpus_score(*_streams(records[:1]))
        numbers = {len(record.references) for record in records}
        corpus.num_refs = numbers.pop() if len(numbers) == 1 else -1
        return f"{name}|{corpus.get_signature()}"

    return Corpus(
        name,
        summary,
        ("generate",),
        ("references", "one_generated"),
        higher_is_better,
        (0.0, greatest),
        options,
        sign,
        prepare=prepare,
        value=sentence,
    )


_LOWERCASE = {"lowercase": Option(False)}
METRICS = (
    _metric(
        "bleu",
        "BLEU by sacrebleu, 0 to 100; tokenize=zh for Chinese",
        _bleu,
        {"tokenize": Option("13a", allowed=("13a", "intl", "zh", "char", "none")), **_LOWERCASE},
    ),
    _metric(
        "chrf",
        "chrF by sacrebleu, 0 to 100; word_order=2 for chrF++",
        _chrf,
        {"word_order": Option(0, least=0), **_LOWERCASE},
    ),
    _metric(
        "ter",
        "translation edit rate by sacrebleu, in percent; asian=true, normalized=true for Chinese",
        _ter,
        {"normalized": Option(False), "asian": Option(False), "case": Option(False)},
        higher_is_better=False,
        greatest=math.inf,
    ),
)
