"""SmolLM3 (Bakouch et al. 2025): Llama's block, every fourth without rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, qwen3
from llmscale.families.hugging_face import Settings, Unsupported, decoder_heads, layer_kinds, repeated

PRESET: dict[str, object] = {
    **llama.PRESET,
    "norm_eps": 1e-6,
    "rotary_base": 2e6,
    "rotary_pattern": [True, True, True, False],
    "tied_embeddings": True,
    "max_positions": 32768,
}


def _read(settings: Settings) -> dict[str, Any]:
    rotated = _rotated(settings, settings.layers("num_hidden_layers", 36))
    window = settings.take("sliding_window", None, int, null=None)
    if not settings.take("use_sliding_window", False):
        window = None
    default = ["full_attention" if window is None or turns else "sliding_attention" for turns in rotated]
    return {
        **llama.read_shared(settings, 32768, 2e6),
        # Not an option of their config class, but their attention takes it.
        "head_size": settings.given("head_dim", int) if "head_dim" in settings.values else None,
        **llama.read_biases(settings),
        **qwen3.read_types(settings, default, window),
        "rotary_pattern": repeated(rotated),
    }


def _rotated(settings: Settings, layers: int) -> list[bool]:
    """Whether each layer has rotary positions. Their keys, by their names, say the opposite: 1 stands for yes."""
    every, listed = settings.take("no_rope_layer_interval", 4), settings.take("no_rope_layers", None, list)
    if listed is None:
        if every < 1:
            raise Unsupported(f"no_rope_layer_interval is {every}, but must be 1 or more; repair it")
        return [(layer + 1) % every != 0 for layer in range(layers)]
    if len(listed) != layers or not all(flag in (0, 1) for flag in listed):
        raise Unsupported(
            f"no_rope_layers is {listed!r:.60}, but must have 0 or 1 for each of the {layers} layers of"
            f" num_hidden_layers; repair it"
        )
    return [bool(flag) for flag in listed]


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    turns = model["rotary_pattern"]
    sliding = "local" in layer_kinds(model)
    return {
        **llama.write_shared(model, "SmolLM3ForCausalLM"),
        "mlp_bias": model["bias"],
        "attention_bias": model["qkv_bias"],
        "use_sliding_window": sliding,
        "sliding_window": model["window"] if sliding else None,
        "layer_types": qwen3.write_kinds(model),
        "no_rope_layers": [int(turns[layer % len(turns)]) for layer in range(model["layers"])],
    }


HUGGING_FACE = llama.table(
    "SmolLM3",
    llama.fields(36, 2048, 16, 4, 11008, 32768, 1e-6, 128256, tied=True),
    nulls={"num_key_value_heads": None},
    unused=("pretraining_tp", "max_window_layers"),
    tokenizer="PreTrainedTokenizerFast",
    heads=decoder_heads("SmolLM3", "score", body="transformer."),
    read=_read,
    write=_write,
)
