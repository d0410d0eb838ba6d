"""Exact match and F1 of short answers, by the rule of the language's own data set: SQuAD's or CMRC 2018's."""

from __future__ import annotations

from llmscale.evaluate.metrics import cmrc, squad
from llmscale.evaluate.metrics.base import Option, Options
from llmscale.evaluate.metrics.texts import text_metric

_RULES = {"en": squad, "zh": cmrc}
_LANGUAGE = {"language": Option("en", allowed=tuple(_RULES))}


def _exact_match(reference: str, text: str, options: Options) -> float:
    return _RULES[options["language"]].exact(reference, text)


def _f1(reference: str, text: str, options: Options) -> float:
    return _RULES[options["language"]].f1(reference, text)


METRICS = (
    text_metric("exact_match", "a reference, case and punctuation aside (SQuAD, CMRC 2018)", _exact_match, _LANGUAGE),
    text_metric("f1", "words shared with a reference (SQuAD), or its longest run (CMRC 2018)", _f1, _LANGUAGE),
)
