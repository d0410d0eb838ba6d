"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): rotary positions on a quarter of each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    PLAIN,
    HuggingFace,
    Settings,
    Weight,
    decoder_heads,
    qkv,
    renamed,
    written_activation,
)
from llmscale.families.rope import read_partial_rope, write_rope

PRESET: dict[str, object] = {
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "parallel_residual": True,
    "activation": "gelu",
    "tied_embeddings": False,
    "max_positions": 2048,
}


def _read(settings: Settings) -> dict[str, Any]:
    bias = settings.take("attention_bias", True)
    return {
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "activation": settings.choose("hidden_act", PLAIN, "gelu"),
        **read_partial_rope(
            settings, "rotary_emb_base", 0.25, "rotary_pct", settings.take("max_position_embeddings", 2048)
        ),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    share = model["rotary_fraction"]
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "attention_bias": model["qkv_bias"],
        "hidden_act": written_activation(model["activation"], PLAIN, "gelu"),
        "rotary_pct": share,
        "rotary_emb_base": model["rotary_base"],
        **write_rope(model, partial_rotary_factor=share),
    }


HUGGING_FACE = HuggingFace(
    model_type="gpt_neox",
    classes=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    tokenizer="GPTNeoXTokenizer",
    heads=decoder_heads("GPTNeoX", "classifier"),
    fields=(
        ("vocab_size", "vocab_size", 50432),
        ("num_hidden_layers", "layers", 44),
        ("hidden_size", "hidden_size", 6144),
        ("num_attention_heads", "heads", 64),
        ("intermediate_size", "ffn_size", 24576),
        ("max_position_embeddings", "max_positions", 2048),
        ("layer_norm_eps", "norm_eps", 1e-5),
        ("use_parallel_residual", "parallel_residual", True),
        ("tie_word_embeddings", "tied_embeddings", False),
        ("initializer_range", "init_std", 0.02),
    ),
    dropout=("hidden_dropout",),
    attention_dropout=("attention_dropout",),
    unused=("classifier_dropout",),
    read=_read,
    write=_write,
    weights=(
        *renamed({"embedding": "embed_in", "norm": "final_layer_norm"}, theirs="gpt_neox."),
        Weight(("head.weight",), "embed_out.weight"),
        qkv("gpt_neox.layers.{layer}.attention.query_key_value", interleaved=True),
        *renamed(
            {
                "attention_norm": "input_layernorm",
                "attention.output": "attention.dense",
                "feed_forward_norm": "post_attention_layernorm",
                "feed_forward.up": "mlp.dense_h_to_4h",
                "feed_forward.down": "mlp.dense_4h_to_h",
            },
            "blocks.{layer}.",
            "gpt_neox.layers.{layer}.",
        ),
    ),
    prefix="gpt_neox.",
    ignored=(r".*\.attention\.(masked_)?bias", r".*\.rotary_emb\..*"),
)
