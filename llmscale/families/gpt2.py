"""GPT-2 (Radford et al. 2019): learned positions, pre-norm, tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    OLD_NAMES,
    PLAIN,
    SUMMARY,
    HuggingFace,
    Settings,
    Weight,
    decoder_heads,
    qkv,
    renamed,
    written_activation,
)

PRESET: dict[str, object] = {}


def _read(settings: Settings) -> dict[str, Any]:
    return {
        "activation": settings.choose("activation_function", PLAIN, "gelu_new"),
        "attention_scale": None if settings.take("scale_attn_weights", True) else 1.0,
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": written_activation(model["activation"], PLAIN, "gelu_new"),
        "scale_attn_weights": model["attention_scale"] in (None, model["head_size"] ** -0.5),
    }


HUGGING_FACE = HuggingFace(
    model_type="gpt2",
    classes=("GPT2LMHeadModel", "GPT2Model"),
    heads=decoder_heads("GPT2", "classifier"),
    aliases=OLD_NAMES,
    fields=(
        ("vocab_size", "vocab_size", 50257),
        ("n_layer", "layers", 12),
        ("n_embd", "hidden_size", 768),
        ("n_head", "heads", 12),
        ("n_inner", "ffn_size", None),
        ("n_positions", "max_positions", 1024),
        ("layer_norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.02),
    ),
    fixed={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    dropout=("resid_pdrop", "embd_pdrop"),
    dropout_rate=0.1,
    attention_dropout=("attn_pdrop",),
    unused=(
        "n_ctx",
        "reorder_and_upcast_attn",
        *SUMMARY,
    ),
    read=_read,
    write=_write,
    weights=(
        *renamed({"embedding": "wte", "positions": "wpe", "norm": "ln_f"}, theirs="transformer."),
        Weight(("head.weight",), "lm_head.weight"),
        *renamed({"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}, "blocks.{layer}.", "transformer.h.{layer}."),
        qkv("transformer.h.{layer}.attn.c_attn", transposed=True),
        *renamed(
            {"attention.output": "attn.c_proj", "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"},
            "blocks.{layer}.",
            "transformer.h.{layer}.",
            transposed=True,
        ),
    ),
    prefix="transformer.",
    ignored=(r".*\.attn\.(masked_)?bias",),
)
