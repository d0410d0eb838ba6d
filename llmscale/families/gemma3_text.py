"""Gemma 3 without its images (Gemma Team 2025): norms on both sides of each sub-layer, a global layer behind five local
ones, and a base of rotary positions for either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, qwen3
from llmscale.families.hugging_face import (
    GATED,
    HuggingFace,
    Settings,
    Unsupported,
    decoder_heads,
    renamed,
    written_activation,
)
from llmscale.families.rope import read_scaling, write_scaling

PRESET: dict[str, object] = {
    **llama.PRESET,
    "activation": "geglu_tanh",
    "attention_pattern": ["local"] * 5 + ["global"],
    "window": 512,
    "embedding_multiplier": "sqrt",
    "head_size": 256,
    "norm_eps": 1e-6,
    "norm_order": "sandwich",
    "norm_plus_one": True,
    "query_key_norm": True,
    "rotary_base": 1e6,
    "rotary_local_base": 10000.0,
    "rotary_local_scaled": False,
    "tied_embeddings": True,
    "max_positions": 32768,
}
_BASES = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 10000.0)}


def _read(settings: Settings) -> dict[str, Any]:
    layers, every = settings.layers("num_hidden_layers", 26), settings.take("sliding_window_pattern", 6)
    if every < 1:
        raise Unsupported(f"sliding_window_pattern is {every}, but must be 1 or more; repair it")
    default = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    pattern = qwen3.read_kinds(settings.names("layer_types") or default, layers)
    # Their class makes masks with a window for models without local layers, too.
    window, scalar = settings.take("sliding_window", 4096), settings.take("query_pre_attn_scalar", 256)
    if scalar < 1:
        raise Unsupported(f"query_pre_attn_scalar is {scalar}, but must be 1 or more; repair it")
    return {
        **qwen3.read_biases(settings),
        **_read_rope(settings),
        "activation": settings.choose("hidden_activation", GATED, "gelu_pytorch_tanh"),
        "attention_pattern": pattern,
        "attention_scale": scalar**-0.5,
        "window": window if "local" in pattern else None,
    }


def _read_rope(settings: Settings) -> dict[str, Any]:
    """Each kind of layer has a base of its own; what `rope_scaling` says is of the global ones."""
    positions = settings.take("max_position_embeddings", 131072)
    given, older = settings.table("rope_parameters"), settings.table("rope_scaling")
    bases, scaling = {}, {}
    for kind, (key, default) in _BASES.items():
        own = given.table(kind) if given.values else Settings({"rope_type": "default"}, kind)
        if kind == "full_attention" and older.values:
            if given.values and not own.values:
                raise Unsupported("rope_scaling is given, but not rope_parameters.full_attention; remove one of both")
            own = Settings({**own.values, **older.values}, "rope_scaling")
        if (share := own.take("partial_rotary_factor", 1.0, null=1.0)) != 1.0:
            raise Unsupported(
                f"{own.where('partial_rotary_factor')} is {share}, but this class rotates all channels; remove it"
            )
        scaling[kind] = read_scaling(own, positions)
        settings.pass_over([key])
        bases[kind] = own.take("rope_theta", default if "rope_theta" in own.values else settings.take(key, default))
    stretched, local = scaling["full_attention"], scaling["sliding_attention"]
    if local not in (None, stretched):
        raise Unsupported(
            f"rope_parameters.sliding_attention stretches by {local['factor']} ({local['kind']}), but llmscale"
            f" stretches local layers as global ones or not at all; import another model"
        )
    return {
        "rotary_base": bases["full_attention"],
        "rotary_local_base": bases["sliding_attention"],
        "rotary_scaling": stretched,
        "rotary_local_scaled": local is not None,
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    bases = {"full_attention": model["rotary_base"]}
    bases["sliding_attention"] = model["rotary_local_base"] or model["rotary_base"]
    scaling = {"full_attention": model["rotary_scaling"]}
    scaling["sliding_attention"] = model["rotary_scaling"] if model["rotary_local_scaled"] else None
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": written_activation(model["activation"], GATED, "gelu_pytorch_tanh"),
        "attention_bias": model["qkv_bias"],
        "query_pre_attn_scalar": round((model["attention_scale"] or model["head_size"] ** -0.5) ** -2),
        "layer_types": qwen3.write_kinds(model),
        "sliding_window": model["window"] or 4096,
        "rope_parameters": {kind: {"rope_theta": bases[kind], **write_scaling(scaling[kind])} for kind in bases},
        "rope_theta": bases["full_attention"],
        "rope_local_base_freq": bases["sliding_attention"],
    }


HUGGING_FACE = HuggingFace(
    model_type="gemma3_text",
    classes=("Gemma3ForCausalLM", "Gemma3TextModel"),
    heads=decoder_heads("Gemma3Text", answers=False),
    fields=(
        ("vocab_size", "vocab_size", 262208),
        ("num_hidden_layers", "layers", 26),
        ("hidden_size", "hidden_size", 2304),
        ("num_attention_heads", "heads", 8),
        ("num_key_value_heads", "kv_heads", 4),
        ("head_dim", "head_size", 256),
        ("intermediate_size", "ffn_size", 9216),
        ("max_position_embeddings", "max_positions", 131072),
        ("rms_norm_eps", "norm_eps", 1e-6),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.02),
    ),
    fixed={
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    attention_dropout=("attention_dropout",),
    unused=("_sliding_window_pattern", "cache_implementation"),
    read=_read,
    write=_write,
    needs=llama.whole_heads("Gemma3ForCausalLM"),
    weights=(
        *llama.EMBEDDINGS,
        *llama.ATTENTION,
        *llama.FEED_FORWARD,
        *renamed(
            {
                "attention_norm": "input_layernorm",
                "post_attention_norm": "post_attention_layernorm",
                "feed_forward_norm": "pre_feedforward_layernorm",
                "post_feed_forward_norm": "post_feedforward_layernorm",
            },
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
    ),
    prefix="model.",
    ignored=llama.IGNORED,
)
