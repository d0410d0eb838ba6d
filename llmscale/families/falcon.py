"""Falcon (Almazrouei et al. 2023): attention and feed-forward side by side, few key heads, rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    PLAIN,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    decoder_heads,
    qkv,
    renamed,
    written_activation,
)
from llmscale.families.llama import IGNORED, whole_heads
from llmscale.families.rope import read_rope, write_rope

PRESET: dict[str, object] = {
    "positions": "rotary",
    "parallel_residual": True,
    "shared_norm": True,
    "kv_heads": 1,
    "activation": "gelu",
    "bias": False,
    "norm_bias": True,
    "max_positions": 2048,
}


def _read(settings: Settings) -> dict[str, Any]:
    def flag(key: str, default: bool) -> bool:
        return settings.take(key, default, bool, null=False)  # type: ignore[no-any-return]

    if flag("alibi", False):
        raise Unsupported(
            "alibi is true, but transformers rounds Falcon's biases by distance to bf16, which llmscale's alibi does"
            " not; import a Falcon with rotary positions (alibi false)"
        )
    heads = settings.take("num_attention_heads", 71)
    given = settings.take("num_kv_heads", heads, int, null=heads)
    new, beside = flag("new_decoder_architecture", False), flag("parallel_attn", True)
    single = flag("multi_query", True)
    if new and not beside:
        raise Unsupported(
            "new_decoder_architecture is true, but parallel_attn is false, which transformers' class cannot compute;"
            " set parallel_attn to true"
        )
    if not new and not single and given != heads:
        raise Unsupported(
            f"num_kv_heads is {given}, but must be num_attention_heads ({heads}) where new_decoder_architecture and"
            f" multi_query are false; repair it"
        )
    width = settings.take("hidden_size", 4544)
    return {
        # An older name, which counts for more.
        "hidden_size": settings.take("n_embed", width, int, null=width),
        "kv_heads": given if new or not single else 1,
        "ffn_size": settings.take("ffn_hidden_size", None, int),
        "parallel_residual": beside,
        "shared_norm": beside and _norms(settings, new) == 1,
        "activation": settings.choose("activation", PLAIN, "gelu"),
        "bias": flag("bias", False),
        "norm_bias": True,
        **read_rope(settings, 10000.0, settings.take("max_position_embeddings", 2048)),
    }


def _norms(settings: Settings, new: bool) -> int:
    """Norms before attention and feed-forward that stand side by side."""
    norms: int = settings.take("num_ln_in_parallel_attn", 1 + new, int, null=1 + new)
    if norms not in (1, 2) if new else norms == 2:
        raise Unsupported(
            f"num_ln_in_parallel_attn is {norms}, but transformers' class computes"
            f" {'1 or 2' if new else 'only 1 without new_decoder_architecture'}; repair it"
        )
    return norms if new else 1


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    beside = model["parallel_residual"]
    # The old architecture has all heads of keys or one; the new one has norms of both kinds.
    new = beside and not (model["shared_norm"] and model["kv_heads"] in (1, model["heads"]))
    norms = {"num_ln_in_parallel_attn": 1 if model["shared_norm"] else 2} if new else {}
    return {
        "architectures": ["FalconForCausalLM"],
        "alibi": False,
        "new_decoder_architecture": new,
        "multi_query": new or model["kv_heads"] == 1,
        "parallel_attn": beside,
        **norms,
        "num_kv_heads": model["kv_heads"] if new else model["heads"],
        "ffn_hidden_size": model["ffn_size"],
        "activation": written_activation(model["activation"], PLAIN, "gelu"),
        "bias": model["bias"],
        **write_rope(model),
    }


def _two_norms(model: Any) -> bool:
    """Whether attention and feed-forward stand side by side under norms of their own."""
    return model.parallel_residual and not model.shared_norm  # type: ignore[no-any-return]


_BLOCK = ("blocks.{layer}.", "transformer.h.{layer}.")
HUGGING_FACE = HuggingFace(
    model_type="falcon",
    classes=("FalconForCausalLM", "FalconModel"),
    heads=decoder_heads("Falcon", "classifier", dropout=("hidden_dropout",)),
    fields=(
        ("vocab_size", "vocab_size", 65024),
        ("num_hidden_layers", "layers", 32),
        ("hidden_size", "hidden_size", 4544),
        ("num_attention_heads", "heads", 71),
        ("max_position_embeddings", "max_positions", 2048),
        ("layer_norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.02),
    ),
    dropout=("hidden_dropout",),
    attention_dropout=("attention_dropout",),
    unused=("apply_residual_connection_post_layernorm",),
    read=_read,
    write=_write,
    needs=whole_heads("FalconForCausalLM"),
    weights=(
        *renamed({"embedding": "word_embeddings", "norm": "ln_f"}, theirs="transformer."),
        Weight(("head.weight",), "lm_head.weight"),
        qkv("transformer.h.{layer}.self_attention.query_key_value", interleaved=True),
        *renamed(
            {
                "attention.output": "self_attention.dense",
                "feed_forward.up": "mlp.dense_h_to_4h",
                "feed_forward.down": "mlp.dense_4h_to_h",
            },
            *_BLOCK,
        ),
        *renamed({"attention_norm": "ln_attn", "feed_forward_norm": "ln_mlp"}, *_BLOCK, only=_two_norms),
        *renamed(
            {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
            *_BLOCK,
            only=lambda model: not _two_norms(model),
        ),
    ),
    prefix="transformer.",
    ignored=IGNORED,
)
