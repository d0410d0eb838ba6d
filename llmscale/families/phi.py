"""Phi-1, 1.5 and 2 (Gunasekar et al. 2023; Li et al. 2023): rotary positions on a part of each head, attention and
feed-forward side by side under one norm, biases everywhere, those of the tokens' logits included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    PLAIN,
    HuggingFace,
    Settings,
    Weight,
    decoder_heads,
    renamed,
    written_activation,
)
from llmscale.families.llama import IGNORED
from llmscale.families.rope import read_partial_rope, write_rope

PRESET: dict[str, object] = {
    "positions": "rotary",
    "rotary_fraction": 0.5,
    "parallel_residual": True,
    "shared_norm": True,
    "tied_embeddings": False,
    "head_bias": True,
    "max_positions": 2048,
}


def _read(settings: Settings) -> dict[str, Any]:
    settings.take("qk_layernorm", False)  # null is refused
    positions = settings.take("max_position_embeddings", 2048)
    return {
        "activation": settings.choose("hidden_act", PLAIN, "gelu_new"),
        # Not an option of their config class, but their attention takes it.
        "head_size": settings.given("head_dim", int) if "head_dim" in settings.values else None,
        **read_partial_rope(settings, "rope_theta", 0.5, "partial_rotary_factor", positions),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    share, size = model["rotary_fraction"], model["head_size"]
    return {
        "architectures": ["PhiForCausalLM"],
        "hidden_act": written_activation(model["activation"], PLAIN, "gelu_new"),
        "partial_rotary_factor": share,
        **({} if size * model["heads"] == model["hidden_size"] else {"head_dim": size}),
        **write_rope(model, partial_rotary_factor=share),
    }


HUGGING_FACE = HuggingFace(
    model_type="phi",
    classes=("PhiForCausalLM", "PhiModel"),
    heads=decoder_heads("Phi", "score", answers=False),
    fields=(
        ("vocab_size", "vocab_size", 51200),
        ("num_hidden_layers", "layers", 24),
        ("hidden_size", "hidden_size", 2048),
        ("num_attention_heads", "heads", 32),
        ("num_key_value_heads", "kv_heads", None),
        ("intermediate_size", "ffn_size", 8192),
        ("max_position_embeddings", "max_positions", 2048),
        ("layer_norm_eps", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", False),
        ("initializer_range", "init_std", 0.02),
    ),
    fixed={"qk_layernorm": False},
    dropout=("resid_pdrop", "embd_pdrop"),
    attention_dropout=("attention_dropout",),
    read=_read,
    write=_write,
    weights=(
        Weight(("embedding.weight",), "model.embed_tokens.weight"),
        *renamed({"norm": "model.final_layernorm", "head": "lm_head"}),
        *renamed(
            {
                "attention_norm": "input_layernorm",
                "attention.query": "self_attn.q_proj",
                "attention.key": "self_attn.k_proj",
                "attention.value": "self_attn.v_proj",
                "attention.output": "self_attn.dense",
                "feed_forward.up": "mlp.fc1",
                "feed_forward.down": "mlp.fc2",
            },
            "blocks.{layer}.",
            "model.layers.{layer}.",
        ),
    ),
    prefix="model.",
    ignored=IGNORED,
)
