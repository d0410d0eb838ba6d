"""Phi-3 (Abdin et al. 2024): Llama's block, whose projections are stored as one tensor each; short contexts only, since
the long ones stretch their rotary frequencies by LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, mistral
from llmscale.families.hugging_face import (
    GATED,
    HuggingFace,
    Settings,
    Weight,
    decoder_heads,
    qkv,
    renamed,
    written_activation,
)
from llmscale.families.rope import read_partial_rope, write_rope

PRESET: dict[str, object] = {**llama.PRESET, "max_positions": 4096, "attention_pattern": ["local"], "window": 2047}


def _read(settings: Settings) -> dict[str, Any]:
    positions = settings.take("max_position_embeddings", 4096)
    settings.take("original_max_position_embeddings", 4096)  # of LongRoPE only, but null is refused
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        "bias": False,
        **read_partial_rope(settings, "rope_theta", 1.0, "partial_rotary_factor", positions),
        **mistral.read_window(settings, None),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["Phi3ForCausalLM"],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "partial_rotary_factor": model["rotary_fraction"],
        **write_rope(model, partial_rotary_factor=model["rotary_fraction"]),
        **mistral.write_window(model),
    }


HUGGING_FACE = HuggingFace(
    model_type="phi3",
    repeats="llama",
    classes=("Phi3ForCausalLM", "Phi3Model"),
    heads=decoder_heads("Phi3", "score", answers=False),
    fields=llama.fields(32, 3072, 32, 32, 8192, 4096, 1e-5, 32064),
    nulls={"num_key_value_heads": None},
    dropout=("resid_pdrop", "embd_pdrop"),
    attention_dropout=("attention_dropout",),
    read=_read,
    write=_write,
    needs=llama.whole_heads("Phi3ForCausalLM"),
    weights=(
        *llama.EMBEDDINGS,
        *llama.NORMS,
        qkv("model.layers.{layer}.self_attn.qkv_proj"),
        Weight(
            ("blocks.{layer}.feed_forward.gate.{kind}", "blocks.{layer}.feed_forward.up.{kind}"),
            "model.layers.{layer}.mlp.gate_up_proj.{kind}",
        ),
        *renamed(
            {
                "attention.output": "self_attn.o_proj",
                "feed_forward.down": "mlp.down_proj",
            },
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
    ),
    prefix="model.",
    ignored=llama.IGNORED,
)
