"""Granite 3 (Granite Team 2024): Llama's block with factors of embeddings, scores, sub-layers and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama
from llmscale.families.hugging_face import GATED, Settings, written_activation
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    **llama.PRESET,
    "embedding_multiplier": 12.0,
    "attention_scale": 0.015625,
    "residual_multiplier": 0.22,
    "head_divisor": 8.0,
    "tied_embeddings": True,
    "max_positions": 4096,
}


def _read(settings: Settings) -> dict[str, Any]:
    bias = settings.take("attention_bias", False)
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        # Not an option of their config class, but their attention takes it.
        "head_size": settings.given("head_dim", int) if "head_dim" in settings.values else None,
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 2048)),
        "bias": settings.take("mlp_bias", False),
        "qkv_bias": bias,
        "attention_output_bias": bias,
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GraniteForCausalLM"],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "head_dim": model["head_size"],
        "attention_multiplier": model["attention_scale"] or model["head_size"] ** -0.5,
        "mlp_bias": model["bias"],
        "attention_bias": model["qkv_bias"],
        **write_rope(model),
    }


HUGGING_FACE = llama.table(
    "Granite",
    (
        *llama.fields(32, 4096, 32, None, 11008, 2048, 1e-6, 32000),
        ("embedding_multiplier", "embedding_multiplier", 1.0),
        ("attention_multiplier", "attention_scale", 1.0),
        ("residual_multiplier", "residual_multiplier", 1.0),
        ("logits_scaling", "head_divisor", 1.0),
    ),
    read=_read,
    write=_write,
    repeats="llama",
)
