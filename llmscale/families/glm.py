"""GLM-4 as of 2024 (GLM Team 2024): Llama's block with interleaved rotary positions on half of each head, biases on
queries, keys and values, and gate and up stored as one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llmscale.families import llama
from llmscale.families.hugging_face import (
    GATED,
    HuggingFace,
    Settings,
    Weight,
    decoder_heads,
    renamed,
    written_activation,
)
from llmscale.families.rope import read_partial_rope, write_rope

PRESET: dict[str, object] = {
    **llama.PRESET,
    "rotary_fraction": 0.5,
    "rotary_interleaved": True,
    "qkv_bias": True,
    "norm_eps": 1.5625e-07,
    "max_positions": 131072,
}


def _read(settings: Settings) -> dict[str, Any]:
    positions = settings.take("max_position_embeddings", 131072)
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        "bias": False,
        "qkv_bias": settings.take("attention_bias", True),
        **read_partial_rope(settings, "rope_theta", 0.5, "partial_rotary_factor", positions),
    }


def _write(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    share = model["rotary_fraction"]
    return {
        "architectures": [f"{name}ForCausalLM"],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "attention_bias": model["qkv_bias"],
        "partial_rotary_factor": share,
        **write_rope(model, partial_rotary_factor=share),
    }


def table(name: str, norms: tuple[Weight, ...]) -> HuggingFace:
    """The table of a generation, whose class is `name`ForCausalLM, with its names of a block's norms."""
    return HuggingFace(
        model_type=name.lower(),
        classes=(f"{name}ForCausalLM", f"{name}Model"),
        heads=decoder_heads(name, "score", answers=False),
        fields=(
            *llama.fields(40, 4096, 32, 2, 13696, 131072, 1.5625e-07, 151552),
            ("head_dim", "head_size", 128),
        ),
        attention_dropout=("attention_dropout",),
        read=_read,
        write=partial(_write, name=name),
        weights=(
            *llama.EMBEDDINGS,
            *norms,
            *llama.ATTENTION,
            Weight(
                ("blocks.{layer}.feed_forward.gate.{kind}", "blocks.{layer}.feed_forward.up.{kind}"),
                "model.layers.{layer}.mlp.gate_up_proj.{kind}",
            ),
            *renamed({"feed_forward.down": "mlp.down_proj"}, "blocks.{layer}.", "model.layers.{layer}."),
        ),
        prefix="model.",
        ignored=llama.IGNORED,
    )


HUGGING_FACE = table("Glm", llama.NORMS)
