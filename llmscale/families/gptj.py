"""GPT-J (Wang and Komatsuzaki 2021): interleaved rotary positions, attention and feed-forward side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    OLD_NAMES,
    PLAIN,
    SUMMARY,
    HuggingFace,
    Settings,
    Unsupported,
    decoder_heads,
    fraction,
    renamed,
    written_activation,
)

PRESET: dict[str, object] = {
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rotary_interleaved": True,
    "parallel_residual": True,
    "shared_norm": True,
    "qkv_bias": False,
    "attention_output_bias": False,
    "tied_embeddings": False,
    "head_bias": True,
    "max_positions": 2048,
}


def _read(settings: Settings) -> dict[str, Any]:
    # Before transformers 5, null stood for all channels of the hidden size, which no attention head has.
    rotated, width, heads = (
        settings.take(key, default) for key, default in (("rotary_dim", 64), ("n_embd", 4096), ("n_head", 16))
    )
    channels = width // heads if heads > 0 else 0
    if not 0 < rotated <= channels:
        raise Unsupported(f"rotary_dim ({rotated}) must be 1 to the {channels} channels of a head; repair config.json")
    return {
        "rotary_fraction": fraction(rotated, channels),
        "activation": settings.choose("activation_function", PLAIN, "gelu_new"),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPTJForCausalLM"],
        "rotary_dim": int(model["head_size"] * model["rotary_fraction"]),
        "activation_function": written_activation(model["activation"], PLAIN, "gelu_new"),
    }


HUGGING_FACE = HuggingFace(
    model_type="gptj",
    classes=("GPTJForCausalLM", "GPTJModel"),
    heads=decoder_heads("GPTJ", None),
    aliases=OLD_NAMES,
    fields=(
        ("vocab_size", "vocab_size", 50400),
        ("n_layer", "layers", 28),
        ("n_embd", "hidden_size", 4096),
        ("n_head", "heads", 16),
        ("n_inner", "ffn_size", None),
        ("n_positions", "max_positions", 2048),
        ("layer_norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", False),
        ("initializer_range", "init_std", 0.02),
    ),
    fixed={"rotary": True, "scale_attn_weights": True},
    dropout=("resid_pdrop", "embd_pdrop"),
    attention_dropout=("attn_pdrop",),
    unused=(
        "n_ctx",
        *SUMMARY,
    ),
    read=_read,
    write=_write,
    weights=(
        *renamed({"embedding": "transformer.wte", "norm": "transformer.ln_f", "head": "lm_head"}),
        *renamed(
            {
                "attention_norm": "ln_1",
                "attention.query": "attn.q_proj",
                "attention.key": "attn.k_proj",
                "attention.value": "attn.v_proj",
                "attention.output": "attn.out_proj",
                "feed_forward.up": "mlp.fc_in",
                "feed_forward.down": "mlp.fc_out",
            },
            "blocks.{layer}.",
            "transformer.h.{layer}.",
        ),
    ),
    prefix="transformer.",
    ignored=(r".*\.attn\.(masked_)?bias", r".*\.attn\.embed_positions"),
)
