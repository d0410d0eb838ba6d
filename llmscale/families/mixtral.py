"""Mixtral (Jiang et al. 2024): Llama's block with eight experts, two for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, mistral
from llmscale.families.hugging_face import HuggingFace, Settings, Weight, decoder_heads

PRESET: dict[str, object] = {
    **llama.PRESET,
    "rotary_base": 1e6,
    "experts": {"count": 8, "per_token": 2, "balance_weight": 0.02},
}


def _read(settings: Settings) -> dict[str, Any]:
    return {
        **llama.read_shared(settings, 131072, 1e6),
        **mistral.read_window(settings, None),
        "experts": {
            "count": settings.take("num_local_experts", 8),
            "per_token": settings.take("num_experts_per_tok", 2),
            "balance_weight": settings.take("router_aux_loss_coef", 0.001),
        },
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    experts = model["experts"] or {"count": 2, "per_token": 1, "balance_weight": 0.0, "ffn_size": None}
    return {
        **llama.write_shared(model, "MixtralForCausalLM"),
        **mistral.write_window(model),
        "intermediate_size": experts["ffn_size"] or model["ffn_size"],
        "num_local_experts": experts["count"],
        "num_experts_per_tok": experts["per_token"],
        "router_aux_loss_coef": experts["balance_weight"],
    }


_EXPERTS = "model.layers.{layer}.block_sparse_moe.experts.{expert}."
HUGGING_FACE = HuggingFace(
    model_type="mixtral",
    classes=("MixtralForCausalLM", "MixtralModel"),
    tokenizer="LlamaTokenizer",
    heads=decoder_heads("Mixtral", "score"),
    fields=llama.fields(32, 4096, 32, 8, 14336, 131072, 1e-5, 32000),
    aliases={"num_experts": "num_local_experts"},
    fixed={"router_jitter_noise": 0.0},
    attention_dropout=("attention_dropout",),
    unused=("output_router_logits",),
    read=_read,
    write=_write,
    weights=(
        *(row for row in llama.WEIGHTS if row not in llama.FEED_FORWARD),
        Weight(("blocks.{layer}.feed_forward.router.weight",), "model.layers.{layer}.block_sparse_moe.gate.weight"),
        Weight(("blocks.{layer}.feed_forward.gate.weight",), _EXPERTS + "w1.weight"),
        Weight(("blocks.{layer}.feed_forward.down.weight",), _EXPERTS + "w2.weight"),
        Weight(("blocks.{layer}.feed_forward.up.weight",), _EXPERTS + "w3.weight"),
    ),
    prefix="model.",
    ignored=llama.IGNORED,
)
