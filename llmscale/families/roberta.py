"""RoBERTa (Liu et al. 2019): BERT's encoder without next sentences, whose positions count from behind the padding
token's id."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llmscale.families import bert
from llmscale.families.hugging_face import (
    PLAIN,
    HeadClass,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    heads_of_tokens,
    renamed,
)

PRESET: dict[str, object] = {
    **bert.PRESET,
    "norm_eps": 1e-5,
    "position_offset": 2,
    "token_types": 1,
    "next_sentence": False,
}


def _read(settings: Settings) -> dict[str, Any]:
    if settings.choose("hidden_act", PLAIN, "gelu") != "gelu":
        raise Unsupported(
            f"hidden_act is {settings.values['hidden_act']!r}, but RoBERTa's head has gelu, and llmscale the same"
            f" function there as in the blocks; import a model with gelu"
        )
    offset, rows = settings.take("pad_token_id", 1) + 1, settings.take("max_position_embeddings", 512)
    if not 0 < offset < rows:
        raise Unsupported(
            f"pad_token_id is {offset - 1}, but must be 0 to {rows - 2}, since the max_position_embeddings ({rows})"
            f" positions begin behind it; repair it"
        )
    return {"activation": "gelu", "position_offset": offset, "max_positions": rows - offset}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["RobertaForMaskedLM"],
        "hidden_act": model["activation"],
        "pad_token_id": model["position_offset"] - 1,
        "max_position_embeddings": model["max_positions"] + model["position_offset"],
    }


_DEFAULTS = {"vocab_size": 50265}
HUGGING_FACE = HuggingFace(
    model_type="roberta",
    classes=("RobertaForMaskedLM", "RobertaModel"),
    heads={
        "classification": HeadClass(
            "RobertaForSequenceClassification",
            "classifier.out_proj",
            {"pooler": "classifier.dense"},
            pooling="first",
            dropout=("hidden_dropout_prob",),
            drops_first=True,
        ),
        **heads_of_tokens("Roberta", "classifier", dropout=("hidden_dropout_prob",)),
    },
    architecture="encoder",
    tokenizer="RobertaTokenizer",
    fields=tuple(
        (key, setting, _DEFAULTS.get(key, default))
        for key, setting, default in bert.FIELDS
        if key != "max_position_embeddings"
    ),
    fixed=bert.FIXED,
    dropout=("hidden_dropout_prob",),
    dropout_rate=0.1,
    attention_dropout=("attention_probs_dropout_prob",),
    unused=("classifier_dropout",),
    read=_read,
    write=_write,
    needs=partial(bert.needs, name="RobertaForMaskedLM"),
    weights=(
        *bert.body("roberta"),
        *renamed({"dense": "dense", "norm": "layer_norm"}, "head.", "lm_head."),
        Weight(("head.weight",), "lm_head.decoder.weight"),
        Weight(("head.bias",), "lm_head.bias"),
    ),
    prefix="roberta.",
    renames=bert.RENAMES,
    ignored=(r"roberta\.embeddings\.position_ids",),
    dropped=(r"roberta\.pooler\.dense\.(weight|bias)",),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)
