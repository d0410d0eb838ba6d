"""GPT-Neo (Black et al. 2021): global and local attention in turn, scores without a factor, few biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import (
    PLAIN,
    SUMMARY,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    decoder_heads,
    layer_kinds,
    renamed,
    repeated,
    written_activation,
)

PRESET: dict[str, object] = {
    "attention_pattern": ["global", "local"],
    "window": 256,
    "attention_scale": 1.0,
    "qkv_bias": False,
    "max_positions": 2048,
}


def _read(settings: Settings) -> dict[str, Any]:
    layers = settings.layers("num_layers", 24)
    # transformers writes both, and reads the one that is spelled out layer by layer.
    settings.pass_over(["attention_types"])
    key, kinds = "attention_layers", settings.names("attention_layers")
    if kinds is None and key in settings.values:
        raise Unsupported(f"{key} is null, but transformers' class needs a list; give one, or remove the key")
    if kinds is None:
        key, kinds = "attention_types", _spelled_out(settings.take("attention_types", None, list), layers)
    if len(kinds) != layers or set(kinds) - {"global", "local"}:
        raise Unsupported(f"{key} gives {len(kinds)} layers ({', '.join(sorted(set(kinds))):.200}), but num_layers is"
                          f" {layers}; repair config.json")  # fmt: skip
    return {
        "attention_pattern": repeated(kinds),
        "activation": settings.choose("activation_function", PLAIN, "gelu_new"),
    }


def _spelled_out(types: list[Any] | None, layers: int) -> list[str]:
    """The kind of each layer from `[[[kind, ...], times], ...]`; no more than are needed to see that they are too
    many."""
    kinds: list[str] = []
    for entry in types if types is not None else [[["global", "local"], 12]]:
        match entry:
            case [list() as pattern, int() as times] if pattern and all(isinstance(kind, str) for kind in pattern):
                kinds += pattern * min(times, layers + 1)
            case _:
                raise Unsupported(
                    f"attention_types has {entry!r:.60}, but needs lists of kinds and how often; repair it"
                )
    return kinds


def _write(model: Mapping[str, Any]) -> dict[str, Any]:
    kinds = layer_kinds(model)
    pattern = repeated(kinds)
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "attention_types": [[pattern, len(kinds) // len(pattern)]],
        "attention_layers": kinds,
        "activation_function": written_activation(model["activation"], PLAIN, "gelu_new"),
    }


HUGGING_FACE = HuggingFace(
    model_type="gpt_neo",
    classes=("GPTNeoForCausalLM", "GPTNeoModel"),
    heads=decoder_heads("GPTNeo", "classifier"),
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    fields=(
        ("vocab_size", "vocab_size", 50257),
        ("num_layers", "layers", 24),
        ("hidden_size", "hidden_size", 2048),
        ("num_heads", "heads", 16),
        ("intermediate_size", "ffn_size", None),
        ("max_position_embeddings", "max_positions", 2048),
        ("window_size", "window", 256),
        ("layer_norm_epsilon", "norm_eps", 1e-5),
        ("tie_word_embeddings", "tied_embeddings", True),
        ("initializer_range", "init_std", 0.02),
    ),
    dropout=("resid_dropout", "embed_dropout"),
    attention_dropout=("attention_dropout",),
    unused=(
        "classifier_dropout",
        *SUMMARY,
    ),
    read=_read,
    write=_write,
    weights=(
        *renamed({"embedding": "wte", "positions": "wpe", "norm": "ln_f"}, theirs="transformer."),
        Weight(("head.weight",), "lm_head.weight"),
        *renamed(
            {
                "attention_norm": "ln_1",
                "attention.query": "attn.attention.q_proj",
                "attention.key": "attn.attention.k_proj",
                "attention.value": "attn.attention.v_proj",
                "attention.output": "attn.attention.out_proj",
                "feed_forward_norm": "ln_2",
                "feed_forward.up": "mlp.c_fc",
                "feed_forward.down": "mlp.c_proj",
            },
            "blocks.{layer}.",
            "transformer.h.{layer}.",
        ),
    ),
    prefix="transformer.",
    ignored=(r".*\.attn\.attention\.(masked_)?bias",),
)
