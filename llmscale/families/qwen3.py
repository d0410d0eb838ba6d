"""Qwen3 (Yang et al. 2025): Llama's block with norms on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmscale.families import llama
from llmscale.families.hugging_face import Settings, Unsupported, decoder_heads, layer_kinds, repeated

PRESET: dict[str, object] = {**llama.PRESET, "query_key_norm": True, "norm_eps": 1e-6, "rotary_base": 1e6}
LAYER_TYPES = {"full_attention": "global", "sliding_attention": "local"}


def read_biases(settings: Settings) -> dict[str, Any]:
    """Biases of the attention alone."""
    bias = settings.take("attention_bias", False)
    return {"bias": False, "qkv_bias": bias, "attention_output_bias": bias}


def read_kinds(types: Sequence[str], layers: int) -> list[str]:
    """`attention_pattern` from transformers' `layer_types`."""
    if len(types) != layers or set(types) - set(LAYER_TYPES):
        raise Unsupported(
            f"layer_types gives {len(types)} layers ({', '.join(sorted(set(types))):.200}), but num_hidden_layers is"
            f" {layers} and llmscale knows {', '.join(LAYER_TYPES)}; import another model"
        )
    return repeated([LAYER_TYPES[kind] for kind in types])


def write_kinds(model: Mapping[str, Any]) -> list[str]:
    """The inverse of `read_kinds`."""
    names = {ours: theirs for theirs, ours in LAYER_TYPES.items()}
    return [names[kind] for kind in layer_kinds(model)]


def read_sliding(settings: Settings) -> dict[str, Any]:
    """Which layers have a window, from the keys that Qwen2 and Qwen3 share."""
    layers, window = settings.layers("num_hidden_layers", 32), settings.take("sliding_window", 4096, int, null=None)
    if not settings.take("use_sliding_window", False):
        window = None
    first = settings.take("max_window_layers", 28)
    default = [
        "full_attention" if window is None or number < first else "sliding_attention" for number in range(layers)
    ]
    return read_types(settings, default, window)


def read_types(settings: Settings, default: list[str], window: int | None) -> dict[str, Any]:
    """Which layers have a window, by `layer_types`; `default` says so where it is absent, `window` is None for none."""
    pattern = read_kinds(settings.names("layer_types") or default, len(default))
    if "local" in pattern and window is None:
        raise Unsupported(
            "layer_types has sliding_attention, but use_sliding_window is false or sliding_window null; repair"
            " config.json"
        )
    return {"attention_pattern": pattern, "window": window if "local" in pattern else None}


def write_sliding(model: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `read_sliding`."""
    sliding = "local" in layer_kinds(model)
    return {
        "use_sliding_window": sliding,
        "sliding_window": model["window"] if sliding else None,
        "max_window_layers": model["layers"],
        "layer_types": write_kinds(model),
    }


def _read(settings: Settings) -> dict[str, Any]:
    return {
        **llama.read_shared(settings, 32768),
        **read_biases(settings),
        **read_sliding(settings),
        "head_size": settings.take("head_dim", 128),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **llama.write_shared(model, "Qwen3ForCausalLM"),
        "attention_bias": model["qkv_bias"],
        **write_sliding(model),
    }


HUGGING_FACE = llama.table(
    "Qwen3",
    llama.fields(32, 4096, 32, 32, 22016, 32768, 1e-6, 151936),
    nulls={"num_key_value_heads": None},
    tokenizer="Qwen2Tokenizer",
    heads=decoder_heads("Qwen3", "score", body="transformer."),
    read=_read,
    write=_write,
)
