"""Qwen3-MoE (Yang et al. 2025): Qwen3's block with many small experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, mistral, qwen3
from llmscale.families.hugging_face import HuggingFace, Settings, Unsupported, Weight, decoder_heads

PRESET: dict[str, object] = {
    **qwen3.PRESET,
    "experts": {"count": 128, "per_token": 8, "balance_weight": 0.001},
}


NO_EXPERTS = {"count": 2, "per_token": 1, "every": 1, "ffn_size": 1, "normalize": True, "balance_weight": 0.0}
"""What stands in for the experts of a dense model, which then reads back as another one."""


def _read(settings: Settings) -> dict[str, Any]:
    if dense := settings.take("mlp_only_layers", [], null=[]):
        raise Unsupported(
            f"mlp_only_layers is {dense}, but llmscale has dense layers between experts by decoder_sparse_step only;"
            f" import another model"
        )
    window = mistral.read_window(settings, 4096)
    if not settings.take("use_sliding_window", False):
        window = {"attention_pattern": ["global"], "window": None}
    settings.pass_over(["max_window_layers"])
    return {
        **llama.read_shared(settings, 32768),
        **qwen3.read_biases(settings),
        **window,
        "experts": {
            "count": settings.take("num_local_experts", 128),
            "per_token": settings.take("num_experts_per_tok", 8),
            "every": settings.take("decoder_sparse_step", 1),
            "ffn_size": settings.take("moe_intermediate_size", 768),
            "normalize": settings.take("norm_topk_prob", False),
            "balance_weight": settings.take("router_aux_loss_coef", 0.001),
        },
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    experts = model["experts"] or NO_EXPERTS
    window = mistral.write_window(model)
    return {
        **llama.write_shared(model, "Qwen3MoeForCausalLM"),
        **window,
        "use_sliding_window": window["sliding_window"] is not None,
        "attention_bias": model["qkv_bias"],
        "num_experts": experts["count"],
        "num_experts_per_tok": experts["per_token"],
        "decoder_sparse_step": experts["every"],
        "mlp_only_layers": [],
        "moe_intermediate_size": experts["ffn_size"] or model["ffn_size"],
        "norm_topk_prob": experts["normalize"],
        "router_aux_loss_coef": experts["balance_weight"],
    }


_EXPERT = "model.layers.{layer}.mlp.experts.{expert}."
EXPERTS = (
    Weight(("blocks.{layer}.feed_forward.router.weight",), "model.layers.{layer}.mlp.gate.weight"),
    Weight(("blocks.{layer}.feed_forward.gate.weight",), _EXPERT + "gate_proj.weight"),
    Weight(("blocks.{layer}.feed_forward.up.weight",), _EXPERT + "up_proj.weight"),
    Weight(("blocks.{layer}.feed_forward.down.weight",), _EXPERT + "down_proj.weight"),
)
HUGGING_FACE = HuggingFace(
    model_type="qwen3_moe",
    classes=("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    tokenizer="Qwen2Tokenizer",
    heads=decoder_heads("Qwen3Moe", "score", body="transformer."),
    fields=llama.fields(24, 2048, 32, 4, 6144, 32768, 1e-6, 151936),
    aliases={"num_experts": "num_local_experts"},
    attention_dropout=("attention_dropout",),
    unused=("output_router_logits",),
    read=_read,
    write=_write,
    weights=(*llama.WEIGHTS, *EXPERTS),
    prefix="model.",
    ignored=llama.IGNORED,
)
