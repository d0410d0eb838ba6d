"""OLMo 2 (OLMo Team 2024): Llama's block with norms after attention and feed-forward in place of those before them, and
norms over all queries and all keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, qwen3
from llmscale.families.hugging_face import GATED, HuggingFace, Settings, decoder_heads, renamed, written_activation
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    **llama.PRESET,
    "norm_order": "reordered",
    "norm_eps": 1e-6,
    "query_key_norm": True,
    "query_key_norm_over": "projection",
    "rotary_base": 500000.0,
    "max_positions": 4096,
}


def _read(settings: Settings) -> dict[str, Any]:
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        # Not an option of their config class, but their attention takes it.
        "head_size": settings.given("head_dim", int) if "head_dim" in settings.values else None,
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 2048)),
        **qwen3.read_biases(settings),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "head_dim": model["head_size"],
        "attention_bias": model["qkv_bias"],
        **write_rope(model),
    }


HUGGING_FACE = HuggingFace(
    model_type="olmo2",
    classes=("Olmo2ForCausalLM", "Olmo2Model"),
    heads=decoder_heads("Olmo2", answers=False),
    fields=llama.fields(32, 4096, 32, None, 11008, 2048, 1e-5, 50304),
    attention_dropout=("attention_dropout",),
    read=_read,
    write=_write,
    weights=(
        *llama.EMBEDDINGS,
        *llama.ATTENTION,
        *llama.FEED_FORWARD,
        *renamed(
            {
                "post_attention_norm": "post_attention_layernorm",
                "post_feed_forward_norm": "post_feedforward_layernorm",
            },
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
    ),
    prefix="model.",
    ignored=llama.IGNORED,
)
