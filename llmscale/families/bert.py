"""BERT (Devlin et al. 2019): an encoder with norms after each sum, segment embeddings, and two heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    PLAIN,
    HeadClass,
    HuggingFace,
    Settings,
    Weight,
    heads_of_tokens,
    renamed,
    written_activation,
)

PRESET: dict[str, object] = {
    "architecture": "encoder",
    "max_positions": 512,
    "norm_order": "post",
    "norm_eps": 1e-12,
    "embedding_norm": True,
    "activation": "gelu",
    "token_types": 2,
    "next_sentence": True,
    "head_transform": True,
    "head_bias": True,
}


def _read(settings: Settings) -> dict[str, Any]:
    # Published directories of BertForMaskedLM hold the other head too, and a BertModel its pooler: `present` sees both.
    classes = settings.take("architectures") or []
    return {
        "activation": settings.choose("hidden_act", PLAIN, "gelu"),
        "next_sentence": "BertForPreTraining" in classes,
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["BertForPreTraining" if model["next_sentence"] else "BertForMaskedLM"],
        "hidden_act": written_activation(model["activation"], PLAIN, "gelu"),
    }


def needs(model: Mapping[str, Any], name: str = "BertForMaskedLM") -> str | None:
    """Why the class `name` cannot hold a model, or None."""
    if not model["token_types"]:
        return f"model.token_types is 0, but {name} has at least one type"
    if not model["tied_embeddings"] and model["head"] is None:
        return f"model.tied_embeddings is false, where {name} has two biases of tokens"
    return None


def body(name: str) -> tuple[Weight, ...]:
    """Rows of the tensors below `name` in theirs: embeddings and blocks."""
    return (
        *renamed(
            {
                "embedding": "word_embeddings",
                "positions": "position_embeddings",
                "token_types": "token_type_embeddings",
                "embedding_norm": "LayerNorm",
            },
            theirs=f"{name}.embeddings.",
        ),
        *renamed(
            {
                "attention.query": "attention.self.query",
                "attention.key": "attention.self.key",
                "attention.value": "attention.self.value",
                "attention.output": "attention.output.dense",
                "attention_norm": "attention.output.LayerNorm",
                "feed_forward.up": "intermediate.dense",
                "feed_forward.down": "output.dense",
                "feed_forward_norm": "output.LayerNorm",
            },
            "blocks.{layer}.",
            f"{name}.encoder.layer.{{layer}}.",
        ),
    )


FIELDS = (
    ("vocab_size", "vocab_size", 30522),
    ("num_hidden_layers", "layers", 12),
    ("hidden_size", "hidden_size", 768),
    ("num_attention_heads", "heads", 12),
    ("intermediate_size", "ffn_size", 3072),
    ("max_position_embeddings", "max_positions", 512),
    ("type_vocab_size", "token_types", 2),
    ("layer_norm_eps", "norm_eps", 1e-12),
    ("tie_word_embeddings", "tied_embeddings", True),
    ("initializer_range", "init_std", 0.02),
)
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
RENAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
HUGGING_FACE = HuggingFace(
    model_type="bert",
    classes=("BertForPreTraining", "BertForMaskedLM", "BertModel"),
    heads={
        "classification": HeadClass(
            "BertForSequenceClassification",
            "classifier",
            {"pooler": "bert.pooler.dense"},
            pooling="first",
            dropout=("hidden_dropout_prob",),
        ),
        **heads_of_tokens(
            "Bert", "classifier", dropout=("hidden_dropout_prob",), dropped=(r"bert\.pooler\.dense\.(weight|bias)",)
        ),
    },
    architecture="encoder",
    fields=FIELDS,
    fixed=FIXED,
    dropout=("hidden_dropout_prob",),
    dropout_rate=0.1,
    attention_dropout=("attention_probs_dropout_prob",),
    unused=(
        "classifier_dropout",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "directionality",
    ),
    read=_read,
    write=_write,
    needs=needs,
    weights=(
        *body("bert"),
        *renamed({"dense": "dense", "norm": "LayerNorm"}, "head.", "cls.predictions.transform."),
        Weight(("head.weight",), "cls.predictions.decoder.weight"),
        Weight(("head.bias",), "cls.predictions.bias"),
        *renamed({"next_sentence.pooler": "bert.pooler.dense", "next_sentence.classifier": "cls.seq_relationship"}),
    ),
    prefix="bert.",
    renames=RENAMES,
    ignored=(r"bert\.embeddings\.position_ids",),
    present={"next_sentence": "bert.pooler.dense.weight"},
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
)
