"""ModernBERT (Warner et al. 2024): an encoder with rotary positions and a global layer among local ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    GATED,
    PLAIN,
    UNGATED,
    HeadClass,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    qkv,
    renamed,
    written_activation,
)
from llmscale.families.qwen3 import read_kinds, write_kinds
from llmscale.families.rope import read_scaling, write_scaling

PRESET: dict[str, object] = {
    "architecture": "encoder",
    "max_positions": 8192,
    "positions": "rotary",
    "rotary_base": 160000.0,
    "rotary_local_base": 10000.0,
    "attention_pattern": ["global", "local", "local"],
    "window": 128,
    "embedding_norm": True,
    "first_norm": False,
    "activation": "geglu",
    "bias": False,
    "head_transform": True,
    "head_bias": True,
}
_BASES = {"full_attention": ("global_rope_theta", 160000.0), "sliding_attention": ("local_rope_theta", 10000.0)}


def _read(settings: Settings) -> dict[str, Any]:
    layers, every = settings.layers("num_hidden_layers", 22), settings.take("global_attn_every_n_layers", 3)
    if every < 1:
        raise Unsupported(f"global_attn_every_n_layers is {every}, but must be 1 or more; repair it")
    default = ["sliding_attention" if number % every else "full_attention" for number in range(layers)]
    gated = settings.choose("hidden_activation", GATED, "gelu")
    bias, attention = settings.take("mlp_bias", False), settings.take("attention_bias", False)
    if (classifier := settings.take("classifier_bias", False)) != bias:
        raise Unsupported(f"classifier_bias is {classifier}, but llmscale has mlp_bias ({bias}) there; import another")
    if settings.choose("classifier_activation", PLAIN, "gelu") != UNGATED[gated]:
        raise Unsupported(
            f"classifier_activation is {settings.values.get('classifier_activation')!r}, but llmscale has the function"
            f" of hidden_activation ({settings.values.get('hidden_activation')!r}) there too; import another model"
        )
    return {
        "activation": gated,
        "attention_pattern": read_kinds(settings.names("layer_types") or default, layers),
        "bias": bias,
        "qkv_bias": attention,
        "attention_output_bias": attention,
        **_read_rope(settings),
    }


def _read_rope(settings: Settings) -> dict[str, Any]:
    """Each kind of layer has a base of its own; no stretching."""
    given, older = settings.table("rope_parameters"), settings.table("rope_scaling")
    bases = {}
    for kind, (key, default) in _BASES.items():
        # transformers puts what `rope_scaling` says into both.
        found = Settings(given.given(kind, dict) if kind in given.values else {})
        own = Settings({**found.values, **older.values}, "rope_scaling" if older.values else f"rope_parameters.{kind}")
        if read_scaling(own, 0) is not None:
            raise Unsupported(f"{own.where('rope_type')} stretches positions, which llmscale does not in this family")
        settings.pass_over([key])
        bases[kind] = own.take("rope_theta", default if "rope_theta" in own.values else settings.take(key, default))
    return {"rotary_base": bases["full_attention"], "rotary_local_base": bases["sliding_attention"]}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    bases = {"full_attention": model["rotary_base"]}
    bases["sliding_attention"] = model["rotary_local_base"] or model["rotary_base"]
    activation = written_activation(model["activation"], GATED, "gelu")
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "hidden_activation": activation,
        "classifier_activation": activation,
        "layer_types": write_kinds(model),
        "local_attention": model["window"] or 128,
        "rope_parameters": {kind: {"rope_theta": base, **write_scaling(None)} for kind, base in bases.items()},
        "global_rope_theta": bases["full_attention"],
        "local_rope_theta": bases["sliding_attention"],
        "attention_bias": model["qkv_bias"],
        "mlp_bias": model["bias"],
        "classifier_bias": model["bias"],
    }


_TRANSFORM = {"dense": "head.dense", "norm": "head.norm"}
HUGGING_FACE = HuggingFace(
    model_type="modernbert",
    token_ids={"cls_token_id": "cls", "sep_token_id": "sep"},
    classes=("ModernBertForMaskedLM", "ModernBertModel"),
    heads={
        "classification": HeadClass(
            "ModernBertForSequenceClassification",
            "classifier",
            _TRANSFORM,
            pooling="first",
            pooling_key={"cls": "first", "mean": "mean"},
            rate=0.0,
        ),
        "token_classification": HeadClass("ModernBertForTokenClassification", "classifier", _TRANSFORM, rate=0.0),
        "span": HeadClass("ModernBertForQuestionAnswering", "classifier", _TRANSFORM, rate=0.0),
    },
    architecture="encoder",
    fields=(
        ("vocab_size", "vocab_size", 50368),
        ("num_hidden_layers", "layers", 22),
        ("hidden_size", "hidden_size", 768),
        ("num_attention_heads", "heads", 12),
        ("intermediate_size", "ffn_size", 1152),
        ("max_position_embeddings", "max_positions", 8192),
        ("local_attention", "window", 128),
        ("norm_eps", "norm_eps", 1e-5),
        ("norm_bias", "norm_bias", False),
        ("decoder_bias", "head_bias", True),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.02),
    ),
    other_dropout=("attention_dropout", "embedding_dropout", "mlp_dropout"),
    unused=(
        "initializer_cutoff_factor",
        "classifier_pooling",
        "classifier_dropout",
        "deterministic_flash_attn",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "reference_compile",
        "repad_logits_with_grad",
        "position_embedding_type",
        "layer_norm_eps",
    ),
    read=_read,
    write=_write,
    weights=(
        *renamed({"embedding": "tok_embeddings", "embedding_norm": "norm"}, theirs="model.embeddings."),
        *renamed({"norm": "model.final_norm", "head.dense": "head.dense", "head.norm": "head.norm", "head": "decoder"}),
        qkv("model.layers.{layer}.attn.Wqkv"),
        # The first half of Wi goes through the activation.
        Weight(
            ("blocks.{layer}.feed_forward.gate.{kind}", "blocks.{layer}.feed_forward.up.{kind}"),
            "model.layers.{layer}.mlp.Wi.{kind}",
        ),
        *renamed(
            {
                "attention_norm": "attn_norm",
                "attention.output": "attn.Wo",
                "feed_forward_norm": "mlp_norm",
                "feed_forward.down": "mlp.Wo",
            },
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
    ),
    prefix="model.",
)
