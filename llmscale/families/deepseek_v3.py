"""DeepSeek-V3 (DeepSeek-AI 2024): latent attention, and many small experts beside one that every token goes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmscale.families import llama
from llmscale.families.hugging_face import (
    GATED,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    decoder_heads,
    renamed,
    written_activation,
)
from llmscale.families.rope import given_rope, mscale, read_rope, write_rope

_LATENT = {"query_rank": 1536, "key_value_rank": 512, "rotary_size": 64, "plain_size": 128, "value_size": 128}
_EXPERTS = {
    "count": 256,
    "per_token": 8,
    "ffn_size": 2048,
    "scoring": "sigmoid",
    "groups": 8,
    "groups_per_token": 4,
    "scale": 2.5,
    "shared": 1,
    "first_dense": 3,
    "balance_weight": 0.0001,
}
PRESET: dict[str, object] = {
    **llama.PRESET,
    "latent": _LATENT,
    "experts": _EXPERTS,
    "norm_eps": 1e-6,
    "rotary_interleaved": True,
    "max_positions": 4096,
}


def _read(settings: Settings) -> dict[str, Any]:
    heads, rotary = settings.take("num_attention_heads", 128), settings.take("qk_rope_head_dim", 64)
    for key, wanted in (("num_key_value_heads", heads), ("head_dim", rotary)):
        # Their config class takes no number of its own for either where it is absent, but what is given counts.
        given = settings.take(key, 128 if key == "num_key_value_heads" else wanted, int, **_null(key, heads))
        if given != wanted:
            raise Unsupported(f"{key} is {given}, but latent attention has {wanted} there; repair it")
    bias = settings.take("attention_bias", False)
    return {
        "activation": settings.choose("hidden_act", GATED, "silu"),
        "bias": False,
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "rotary_interleaved": settings.take("rope_interleave", True, bool, null=False),
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 4096)),
        "attention_scale": _read_scale(settings, settings.take("qk_nope_head_dim", 128) + rotary),
        "latent": {
            "query_rank": settings.take("q_lora_rank", 1536, int, null=None),
            "key_value_rank": settings.take("kv_lora_rank", 512),
            "rotary_size": rotary,
            "plain_size": settings.take("qk_nope_head_dim", 128),
            "value_size": settings.take("v_head_dim", 128),
        },
        "experts": _read_experts(settings),
    }


def _read_scale(settings: Settings, channels: int) -> float | None:
    """The factor of scores, which a stretch of positions changes; None: as plain attention has it."""
    given = given_rope(settings)
    weight = given.take("mscale_all_dim", 0.0, float, null=0.0)
    if not weight or given.take("rope_type", given.take("type", "default")) == "default" or channels < 1:
        return None
    return channels**-0.5 * mscale(given.given("factor", float), weight) ** 2  # type: ignore[no-any-return]


def _write_scale(model: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The key of `_read_scale`, in every object of rotary settings."""
    scaling, found = model["rotary_scaling"], write_rope(model)
    if scaling is None or model["attention_scale"] is None or scaling["factor"] == 1:
        return found
    root = math.sqrt(model["attention_scale"] * math.sqrt(channels))
    weight = round((root - 1.0) / (0.1 * math.log(scaling["factor"])), 6)
    for key in ("rope_scaling", "rope_parameters"):
        found[key] = {**found[key], "mscale_all_dim": weight}
    return found


def _null(key: str, heads: int) -> dict[str, Any]:
    return {"null": heads} if key == "num_key_value_heads" else {}


def _read_experts(settings: Settings) -> dict[str, Any] | None:
    experts = {
        "count": settings.take("n_routed_experts", 256),
        "per_token": settings.take("num_experts_per_tok", 8),
        "ffn_size": settings.take("moe_intermediate_size", 2048),
        "normalize": settings.take("norm_topk_prob", True, bool, null=False),
        "scoring": "sigmoid",
        "groups": settings.take("n_group", 8),
        "groups_per_token": settings.take("topk_group", 4),
        "scale": settings.take("routed_scaling_factor", 2.5),
        "shared": settings.take("n_shared_experts", 1),
        "first_dense": settings.take("first_k_dense_replace", 3),
        "balance_weight": _EXPERTS["balance_weight"],
    }
    if experts["shared"] < 1:
        raise Unsupported(
            f"n_shared_experts is {experts['shared']}, but transformers' class computes with 1 or more; repair it"
        )
    return experts if experts["first_dense"] < settings.take("num_hidden_layers", 61) else None


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    latent = model["latent"] or _LATENT
    experts = model["experts"] or {**_EXPERTS, "normalize": True, "first_dense": model["layers"]}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_act": written_activation(model["activation"], GATED, "silu"),
        "num_key_value_heads": model["heads"],
        "attention_bias": model["qkv_bias"],
        "rope_interleave": model["rotary_interleaved"],
        **_write_scale(model, latent["plain_size"] + latent["rotary_size"]),
        "q_lora_rank": latent["query_rank"],
        "kv_lora_rank": latent["key_value_rank"],
        "qk_rope_head_dim": latent["rotary_size"],
        "qk_nope_head_dim": latent["plain_size"],
        "v_head_dim": latent["value_size"],
        "n_routed_experts": experts["count"],
        "num_experts_per_tok": experts["per_token"],
        "moe_intermediate_size": experts["ffn_size"] or model["ffn_size"],
        "norm_topk_prob": experts["normalize"],
        "n_group": experts["groups"],
        "topk_group": experts["groups_per_token"],
        "routed_scaling_factor": experts["scale"],
        "n_shared_experts": experts["shared"],
        "first_k_dense_replace": experts["first_dense"],
        "num_nextn_predict_layers": 0,
    }


_MLP = "model.layers.{layer}.mlp."
HUGGING_FACE = HuggingFace(
    model_type="deepseek_v3",
    classes=("DeepseekV3ForCausalLM", "DeepseekV3Model"),
    heads=decoder_heads("DeepseekV3", "score", answers=False),
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    fields=tuple(row for row in llama.fields(61, 7168, 128, 0, 18432, 4096, 1e-6, 129280) if row[1] != "kv_heads"),
    attention_dropout=("attention_dropout",),
    unused=(
        "qk_head_dim",
        "num_mtp_layers",
        "num_nextn_predict_layers",
        "output_router_logits",
        "pretraining_tp",
        # Of the code that was published with the weights.
        *("aux_loss_alpha", "ep_size", "moe_layer_freq", "scoring_func", "seq_aux", "topk_method"),
    ),
    read=_read,
    write=_write,
    weights=(
        *llama.EMBEDDINGS,
        *llama.NORMS,
        *llama.FEED_FORWARD,
        *renamed(
            {
                "attention.query": "self_attn.q_proj",
                "attention.query_down": "self_attn.q_a_proj",
                "attention.query_norm": "self_attn.q_a_layernorm",
                "attention.query_up": "self_attn.q_b_proj",
                "attention.key_value_down": "self_attn.kv_a_proj_with_mqa",
                "attention.key_value_norm": "self_attn.kv_a_layernorm",
                "attention.key_value_up": "self_attn.kv_b_proj",
                "attention.output": "self_attn.o_proj",
                "shared_feed_forward.gate": "mlp.shared_experts.gate_proj",
                "shared_feed_forward.up": "mlp.shared_experts.up_proj",
                "shared_feed_forward.down": "mlp.shared_experts.down_proj",
            },
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
        Weight(("blocks.{layer}.feed_forward.router.weight",), f"{_MLP}gate.weight"),
        Weight(("blocks.{layer}.feed_forward.correction_bias",), f"{_MLP}gate.e_score_correction_bias"),
        Weight(("blocks.{layer}.feed_forward.gate.weight",), f"{_MLP}experts.{{expert}}.gate_proj.weight"),
        Weight(("blocks.{layer}.feed_forward.up.weight",), f"{_MLP}experts.{{expert}}.up_proj.weight"),
        Weight(("blocks.{layer}.feed_forward.down.weight",), f"{_MLP}experts.{{expert}}.down_proj.weight"),
    ),
    prefix="model.",
    ignored=llama.IGNORED,
    # The layer that predicts a further token, which their class has no part in either.
    dropped=(r"model\.layers\.61\..*",),
)
