"""Llama, up to Llama 3 (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMSNorm, SwiGLU, no biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmscale.families.hugging_face import (
    GATED,
    HuggingFace,
    Settings,
    Weight,
    decoder_heads,
    renamed,
    written_activation,
)
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tied_embeddings": False,
    "max_positions": 2048,
}


def fields(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int | None,
    ffn: int,
    positions: int,
    eps: float,
    vocab: int,
    tied: bool = False,
) -> tuple[tuple[str, str, Any], ...]:
    """The settings that Llama's descendants share, with their class's defaults."""
    return (
        ("vocab_size", "vocab_size", vocab),
        ("num_hidden_layers", "layers", layers),
        ("hidden_size", "hidden_size", hidden),
        ("num_attention_heads", "heads", heads),
        ("num_key_value_heads", "kv_heads", kv_heads),
        ("intermediate_size", "ffn_size", ffn),
        ("max_position_embeddings", "max_positions", positions),
        ("rms_norm_eps", "norm_eps", eps),
        ("tie_word_embeddings", "tied_embeddings", tied),
        ("initializer_range", "init_std", 0.02),
    )


def read_shared(settings: Settings, positions: int, base: float = 10000.0) -> dict[str, Any]:
    """Activation and rotary settings of all of them, with their class's default of max_position_embeddings."""
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        "head_size": settings.take("head_dim", None, int),
        **read_rope(settings, base, settings.take("max_position_embeddings", positions)),
    }


def write_shared(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys of `read_shared`, for the class `name`."""
    return {
        "architectures": [name],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "head_dim": model["head_size"],
        **write_rope(model),
    }


def read_biases(settings: Settings) -> dict[str, Any]:
    """Biases of the attention, and of the feed-forward layers."""
    bias = settings.take("attention_bias", False)
    return {"bias": settings.take("mlp_bias", False), "qkv_bias": bias, "attention_output_bias": bias}


def _read(settings: Settings) -> dict[str, Any]:
    return {**read_shared(settings, 2048), **read_biases(settings)}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **write_shared(model, "LlamaForCausalLM"),
        "mlp_bias": model["bias"],
        "attention_bias": model["qkv_bias"],
    }


def whole_heads(name: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Why the class `name`, whose heads divide the hidden size, cannot hold a model, or None."""

    def needs(model: Mapping[str, Any]) -> str | None:
        if model["hidden_size"] % model["heads"] == 0:
            return None
        return (
            f"model.hidden_size ({model['hidden_size']}) is no multiple of model.heads ({model['heads']}), which"
            f" {name} needs"
        )

    return needs


FEED_FORWARD = renamed(
    {"feed_forward.gate": "mlp.gate_proj", "feed_forward.up": "mlp.up_proj", "feed_forward.down": "mlp.down_proj"},
    "blocks.{layer}.",
    "model.layers.{layer}.",
)
EMBEDDINGS = (
    Weight(("embedding.weight",), "model.embed_tokens.weight"),
    *renamed({"norm": "model.norm"}),
    Weight(("head.weight",), "lm_head.weight"),
)
"""With the last norm."""
NORMS = renamed(
    {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
    "blocks.{layer}.",
    "model.layers.{layer}.",
)
ATTENTION = renamed(
    {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "attention.query_norm": "self_attn.q_norm",
        "attention.key_norm": "self_attn.k_norm",
    },
    "blocks.{layer}.",
    "model.layers.{layer}.",
)
WEIGHTS = (*EMBEDDINGS, *NORMS, *ATTENTION, *FEED_FORWARD)
IGNORED = (r".*\.rotary_emb\.inv_freq",)


def table(name: str, fields: tuple[tuple[str, str, Any], ...], **more: Any) -> HuggingFace:
    """The table of a class `name`ForCausalLM that has Llama's tensors."""
    return HuggingFace(
        model_type=name.lower(),
        classes=(f"{name}ForCausalLM", f"{name}Model"),
        fields=fields,
        attention_dropout=("attention_dropout",),
        weights=WEIGHTS,
        prefix="model.",
        ignored=IGNORED,
        **more,
    )


HUGGING_FACE = table(
    "Llama",
    fields(32, 4096, 32, None, 11008, 2048, 1e-6, 32000),
    unused=("pretraining_tp",),
    tokenizer="LlamaTokenizer",
    heads=decoder_heads("Llama", "score", body="transformer."),
    read=_read,
    write=_write,
    needs=whole_heads("LlamaForCausalLM"),
)
