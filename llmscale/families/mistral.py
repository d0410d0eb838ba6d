"""Mistral (Jiang et al. 2023): Llama's block with a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama
from llmscale.families.hugging_face import Settings, decoder_heads

PRESET: dict[str, object] = {**llama.PRESET, "attention_pattern": ["local"], "window": 4096}


def read_window(settings: Settings, default: int | None) -> dict[str, Any]:
    """One window for all layers; null: none."""
    given = settings.take("sliding_window", default, int, null=None)
    return {"attention_pattern": ["global" if given is None else "local"], "window": given}


def write_window(model: Mapping[str, Any]) -> dict[str, Any]:
    """The key of `read_window`."""
    return {"sliding_window": model["window"] if "local" in model["attention_pattern"] else None}


def _read(settings: Settings) -> dict[str, Any]:
    return {**llama.read_shared(settings, 131072), **read_window(settings, 4096)}


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**llama.write_shared(model, "MistralForCausalLM"), **write_window(model)}


HUGGING_FACE = llama.table(
    "Mistral",
    llama.fields(32, 4096, 32, 8, 14336, 131072, 1e-6, 32000),
    tokenizer="LlamaTokenizer",
    heads=decoder_heads("Mistral", "score"),
    read=_read,
    write=_write,
)
