"""StarCoder 2 (Lozhkov et al. 2024): rotary positions, grouped queries, LayerNorm, and biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families import llama, mistral
from llmscale.families.hugging_face import PLAIN, HuggingFace, Settings, decoder_heads, renamed, written_activation
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    "positions": "rotary",
    "activation": "gelu_tanh",
    "attention_pattern": ["local"],
    "window": 4096,
    "max_positions": 16384,
    "init_std": 0.018042,
}

_ACTIVATION = "gelu_pytorch_tanh"


def _read(settings: Settings) -> dict[str, Any]:
    return {
        "activation": settings.choose("hidden_act", PLAIN, _ACTIVATION),
        "head_size": settings.take("head_dim", None, int),
        "bias": settings.take("use_bias", True),
        "norm_bias": True,
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 4096)),
        **mistral.read_window(settings, None),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    activation = written_activation(model["activation"], PLAIN, _ACTIVATION)
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_act": _ACTIVATION if model["activation"] == "gelu_tanh" else activation,
        "head_dim": model["head_size"],
        "use_bias": model["bias"],
        **write_rope(model),
        **mistral.write_window(model),
    }


HUGGING_FACE = HuggingFace(
    model_type="starcoder2",
    classes=("Starcoder2ForCausalLM", "Starcoder2Model"),
    heads=decoder_heads("Starcoder2", "score", answers=False),
    fields=(
        ("vocab_size", "vocab_size", 49152),
        ("num_hidden_layers", "layers", 30),
        ("hidden_size", "hidden_size", 3072),
        ("num_attention_heads", "heads", 24),
        ("num_key_value_heads", "kv_heads", 2),
        ("intermediate_size", "ffn_size", 12288),
        ("max_position_embeddings", "max_positions", 4096),
        ("norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.018042),
    ),
    dropout=("residual_dropout", "embedding_dropout"),
    attention_dropout=("attention_dropout",),
    read=_read,
    write=_write,
    weights=(
        *llama.EMBEDDINGS,
        *llama.NORMS,
        *llama.ATTENTION,
        *renamed(
            {"feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"},
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
    ),
    prefix="model.",
    ignored=llama.IGNORED,
)
