"""OPT (Zhang et al. 2022): GPT-2's block with ReLU, and two rows before those of the positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    PLAIN,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    decoder_heads,
    renamed,
    written_activation,
)
from llmscale.families.llama import whole_heads

PRESET: dict[str, object] = {"activation": "relu", "position_offset": 2, "max_positions": 2048}
_DROPOUT = 0.1
_FIXED = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}


def _read(settings: Settings) -> dict[str, Any]:
    for key, value in {**_FIXED, "layerdrop": 0.0}.items():
        settings.take(key, value)  # null is refused
    width = settings.take("hidden_size", 768)
    embedded = settings.take("word_embed_proj_dim", width, int, null=width)
    if embedded != width:
        raise Unsupported(
            f"word_embed_proj_dim is {embedded}, but llmscale's embeddings are as wide as hidden_size ({width}); import"
            f" another model"
        )
    if settings.take("dropout", _DROPOUT):
        settings.notes.append("dropout acts on the embeddings, too, which transformers' class leaves alone")
    bias = settings.take("enable_bias", True)
    return {
        "activation": settings.choose("activation_function", PLAIN, "relu"),
        "attention_dropout": settings.dropout(("attention_dropout",), 0.0),
        "bias": bias,
        "norm_bias": True,
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "activation_function": written_activation(model["activation"], PLAIN, "relu"),
        "enable_bias": model["bias"],
        "word_embed_proj_dim": model["hidden_size"],
    }


HUGGING_FACE = HuggingFace(
    model_type="opt",
    classes=("OPTForCausalLM", "OPTModel"),
    heads=decoder_heads("OPT"),
    fields=(
        ("vocab_size", "vocab_size", 50272),
        ("num_hidden_layers", "layers", 12),
        ("hidden_size", "hidden_size", 768),
        ("num_attention_heads", "heads", 12),
        ("ffn_dim", "ffn_size", 3072),
        ("max_position_embeddings", "max_positions", 2048),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("init_std", "init_std", 0.02),
    ),
    fixed=_FIXED,
    dropout=("dropout",),
    dropout_rate=_DROPOUT,
    attention_dropout=("attention_dropout",),
    other_dropout=("layerdrop",),
    # Of the first version of their class.
    unused=("activation_dropout",),
    read=_read,
    write=_write,
    needs=whole_heads("OPTForCausalLM"),
    weights=(
        Weight(("embedding.weight",), "model.decoder.embed_tokens.weight"),
        Weight(("positions.weight",), "model.decoder.embed_positions.weight"),
        *renamed({"norm": "model.decoder.final_layer_norm"}),
        Weight(("head.weight",), "lm_head.weight"),
        *renamed(
            {
                "attention_norm": "self_attn_layer_norm",
                "attention.query": "self_attn.q_proj",
                "attention.key": "self_attn.k_proj",
                "attention.value": "self_attn.v_proj",
                "attention.output": "self_attn.out_proj",
                "feed_forward_norm": "final_layer_norm",
                "feed_forward.up": "fc1",
                "feed_forward.down": "fc2",
            },
            "blocks.{layer}.",
            "model.decoder.layers.{layer}.",
        ),
    ),
    prefix="model.",
)
