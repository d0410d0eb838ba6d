"""Gemma (Gemma Team 2024): Llama's block with a gate of GELU, norms that multiply by 1 + weight, scaled embeddings and
large heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, qwen3
from llmscale.families.hugging_face import GATED, Settings, decoder_heads, written_activation
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    **llama.PRESET,
    "activation": "geglu_tanh",
    "embedding_multiplier": "sqrt",
    "head_size": 256,
    "norm_eps": 1e-6,
    "norm_plus_one": True,
    "tied_embeddings": True,
    "max_positions": 8192,
}
_FUNCTIONS = {**GATED, "gelu": "geglu_tanh"}
"""The first files say gelu and mean its approximation, which is how transformers reads them."""


def _read(settings: Settings) -> dict[str, Any]:
    settings.require("use_bidirectional_attention", False)
    return {
        **qwen3.read_biases(settings),
        "activation": settings.choose("hidden_act", _FUNCTIONS, "gelu_pytorch_tanh"),
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 8192)),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    activation = written_activation(model["activation"], _FUNCTIONS, "gelu_pytorch_tanh")
    return {
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": activation,
        # transformers 4 asks for this first, and takes the approximation by tanh where it is missing.
        "hidden_activation": activation,
        "attention_bias": model["qkv_bias"],
        **write_rope(model),
    }


HUGGING_FACE = llama.table(
    "Gemma",
    (
        *(row for row in llama.fields(28, 3072, 16, 16, 24576, 8192, 1e-6, 256000) if row[0] != "tie_word_embeddings"),
        ("head_dim", "head_size", 256),
        ("tie_word_embeddings", "tied_embeddings", True),
    ),
    # Of transformers 4 alone, where it counted for more than hidden_act.
    unused=("hidden_activation",),
    tokenizer="GemmaTokenizer",
    heads=decoder_heads("Gemma", "score", answers=False),
    read=_read,
    write=_write,
)
