"""OLMoE (Muennighoff et al. 2024): Llama's block with norms over all queries and all keys, and many small experts whose
weights are the router's probabilities as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, qwen3, qwen3_moe
from llmscale.families.hugging_face import GATED, HuggingFace, Settings, Unsupported, written_activation
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    **llama.PRESET,
    "query_key_norm": True,
    "query_key_norm_over": "projection",
    "max_positions": 4096,
    "experts": {"count": 64, "per_token": 8, "normalize": False, "balance_weight": 0.01},
}


def _read(settings: Settings) -> dict[str, Any]:
    # Not an option of their config class, but their attention takes it, and their norms do not.
    channels = settings.take("hidden_size", 2048) / max(1, settings.take("num_attention_heads", 16))
    if (size := settings.take("head_dim", channels, object)) not in (None, channels):
        raise Unsupported(f"head_dim is {size}, but this class has hidden_size / num_attention_heads; remove it")
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 4096)),
        **qwen3.read_biases(settings),
        "experts": {
            "count": settings.take("num_experts", 64),
            "per_token": settings.take("num_experts_per_tok", 8),
            "normalize": settings.take("norm_topk_prob", False),
            "balance_weight": settings.take("router_aux_loss_coef", 0.01),
        },
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    experts = model["experts"] or qwen3_moe.NO_EXPERTS
    return {
        "architectures": ["OlmoeForCausalLM"],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "attention_bias": model["qkv_bias"],
        "intermediate_size": experts["ffn_size"] or model["ffn_size"],
        "num_experts": experts["count"],
        "num_experts_per_tok": experts["per_token"],
        "norm_topk_prob": experts["normalize"],
        "router_aux_loss_coef": experts["balance_weight"],
        **write_rope(model),
    }


HUGGING_FACE = HuggingFace(
    model_type="olmoe",
    classes=("OlmoeForCausalLM", "OlmoeModel"),
    tokenizer="GPTNeoXTokenizer",
    fields=llama.fields(16, 2048, 16, None, 2048, 4096, 1e-5, 50304),
    aliases={"num_local_experts": "num_experts"},
    nulls={"num_key_value_heads": None},
    fixed={"clip_qkv": None},
    attention_dropout=("attention_dropout",),
    unused=("output_router_logits",),
    read=_read,
    write=_write,
    needs=llama.whole_heads("OlmoeForCausalLM"),
    weights=(*(row for row in llama.WEIGHTS if row not in llama.FEED_FORWARD), *qwen3_moe.EXPERTS),
    prefix="model.",
    ignored=llama.IGNORED,
)
