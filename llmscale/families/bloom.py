"""BLOOM (BigScience Workshop 2022, section 3.2): ALiBi in place of positions, and a norm after the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import HuggingFace, Settings, Unsupported, Weight, decoder_heads, qkv, renamed
from llmscale.families.llama import whole_heads

PRESET: dict[str, object] = {"positions": "alibi", "embedding_norm": True, "max_positions": 2048}


def _read(settings: Settings) -> dict[str, Any]:
    width = settings.take("hidden_size", 64)
    if settings.take("apply_residual_connection_post_layernorm", False):
        raise Unsupported(
            "apply_residual_connection_post_layernorm is true, but llmscale adds to what enters a norm, not to what"
            " leaves it; import a BLOOM with false there"
        )
    ranks = settings.take("pretraining_tp", 1)
    if settings.take("slow_but_exact", False) and ranks > 1:
        raise Unsupported(
            f"slow_but_exact is true with pretraining_tp {ranks}, by which transformers leaves biases out; set"
            f" slow_but_exact to false"
        )
    return {
        # An older name, which counts for more.
        "hidden_size": settings.take("n_embed", width, int, null=width),
        # No option of their class, whose positions have no end.
        "max_positions": settings.take("seq_length", PRESET["max_positions"], int, null=PRESET["max_positions"]),
    }


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "apply_residual_connection_post_layernorm": False,
        "seq_length": model["max_positions"],
    }


HUGGING_FACE = HuggingFace(
    model_type="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    heads=decoder_heads("Bloom", "classifier", dropout=("hidden_dropout",)),
    aliases={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    fields=(
        ("vocab_size", "vocab_size", 250880),
        ("n_layer", "layers", 2),
        ("hidden_size", "hidden_size", 64),
        ("n_head", "heads", 8),
        ("layer_norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.02),
    ),
    dropout=("hidden_dropout",),
    attention_dropout=("attention_dropout",),
    # Of Megatron-DeepSpeed, which published files have and transformers does not read.
    unused=(
        "attention_softmax_in_fp32",
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "n_inner",
        "offset_alibi",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "unk_token_id",
    ),
    read=_read,
    write=_write,
    needs=whole_heads("BloomForCausalLM"),
    weights=(
        *renamed(
            {"embedding": "word_embeddings", "embedding_norm": "word_embeddings_layernorm", "norm": "ln_f"},
            theirs="transformer.",
        ),
        Weight(("head.weight",), "lm_head.weight"),
        qkv("transformer.h.{layer}.self_attention.query_key_value", interleaved=True),
        *renamed(
            {
                "attention_norm": "input_layernorm",
                "attention.output": "self_attention.dense",
                "feed_forward_norm": "post_attention_layernorm",
                "feed_forward.up": "mlp.dense_h_to_4h",
                "feed_forward.down": "mlp.dense_4h_to_h",
            },
            "blocks.{layer}.",
            "transformer.h.{layer}.",
        ),
    ),
    prefix="transformer.",
)
