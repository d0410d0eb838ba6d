"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa for a hundred languages, with a unigram model of SentencePiece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from llmscale.families import bert, roberta
from llmscale.families.hugging_face import Settings

PRESET: dict[str, object] = {**roberta.PRESET}
_BASE = roberta.HUGGING_FACE


def _read(settings: Settings) -> dict[str, Any]:
    return {**_BASE.read(settings), "family": "xlm_roberta"}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**_BASE.write(model), "architectures": ["XLMRobertaForMaskedLM"]}


HUGGING_FACE = replace(
    _BASE,
    model_type="xlm-roberta",
    classes=("XLMRobertaForMaskedLM", "XLMRobertaModel"),
    heads={head: replace(form, name=f"XLM{form.name}") for head, form in _BASE.heads.items()},
    tokenizer="XLMRobertaTokenizer",
    # transformers' class has BERT's defaults, that of the vocabulary's size included.
    fields=tuple(row for row in bert.FIELDS if row[0] != "max_position_embeddings"),
    repeats="roberta",
    read=_read,
    write=_write,
    needs=partial(bert.needs, name="XLMRobertaForMaskedLM"),
)
