"""Qwen2 and Qwen2.5 (Yang et al. 2024): Llama's block with biases on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, qwen3
from llmscale.families.hugging_face import Settings, decoder_heads

PRESET: dict[str, object] = {**llama.PRESET, "qkv_bias": True, "norm_eps": 1e-6, "rotary_base": 1e6}


def _read(settings: Settings) -> dict[str, Any]:
    return {
        **llama.read_shared(settings, 32768),
        **qwen3.read_sliding(settings),
        "bias": False,
        "qkv_bias": True,
        "attention_output_bias": False,
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**llama.write_shared(model, "Qwen2ForCausalLM"), **qwen3.write_sliding(model)}


HUGGING_FACE = llama.table(
    "Qwen2",
    llama.fields(32, 4096, 32, 32, 22016, 32768, 1e-6, 151936),
    repeats="llama",
    nulls={"num_key_value_heads": None},
    heads=decoder_heads("Qwen2", "score", body="transformer."),
    read=_read,
    write=_write,
)
