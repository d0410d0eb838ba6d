"""T5 v1.0 (Raffel et al. 2020): relative positions, RMSNorm, no biases, scores without a factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmscale.families.hugging_face import (
    GATED,
    PLAIN,
    UNGATED,
    HeadClass,
    HuggingFace,
    Settings,
    Unsupported,
    Weight,
    renamed,
)

PRESET: dict[str, object] = {
    "architecture": "encoder_decoder",
    "max_positions": 512,
    "positions": "relative",
    "attention_scale": 1.0,
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "activation": "relu",
    "bias": False,
    "scaled_head": True,
    "dropout_scheme": "t5",
    "init_scheme": "fan_in",
}
_WRITTEN = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "geglu": "gated-gelu_python",
    "geglu_tanh": "gated-gelu",
    "reglu": "gated-relu",
    "swiglu": "gated-silu",
}


_OF_ENCODER = "ForTokenClassification"
"""What the name of the class ends with that has the encoder alone."""


def _read_activation(settings: Settings, default: str) -> str:
    """From `feed_forward_proj`, or the two keys that transformers makes of it, writes too and reads in its place."""
    given = settings.take("feed_forward_proj", default)
    gate, _, name = given.rpartition("-")
    if gate not in ("", "gated"):
        raise Unsupported(f"feed_forward_proj is {given!r:.60}, but must be a function or gated-FUNCTION; repair it")
    # That of the first published ones with a gate, which is the approximation by tanh.
    name = settings.take("dense_act_fn", "gelu_new" if given == "gated-gelu" else name)
    table = GATED if settings.take("is_gated_act", gate == "gated") else PLAIN
    if name not in table:
        key = "dense_act_fn" if "dense_act_fn" in settings.values else "feed_forward_proj"
        raise Unsupported(
            f"{key} is {settings.values[key]!r:.60}, but llmscale knows {', '.join(PLAIN)} there, also with a gate;"
            f" import another model"
        )
    return table[name]


def _read(settings: Settings, multilingual: bool) -> dict[str, Any]:
    # transformers 4 tells v1.1 by its untied head, and scales the head's input only where it is tied.
    tied = settings.take("tie_word_embeddings", True, bool, **({} if multilingual else {"null": True}))
    activation = _read_activation(settings, "gated-gelu" if multilingual else "relu")
    encoder, decoder = (
        settings.take("num_layers", 8 if multilingual else 6),
        settings.take("num_decoder_layers", None, int),
    )
    alone = any(str(name).endswith(_OF_ENCODER) for name in settings.values.get("architectures") or ())
    return {
        "family": "mt5" if multilingual else "t5_v1_1" if activation in UNGATED else "t5",
        **({"architecture": "encoder", "encoder_layers": None} if alone else {}),
        "layers": encoder if alone or decoder is None else decoder,
        "activation": activation,
        "tied_embeddings": tied,
        "scaled_head": False if multilingual else settings.take("scale_decoder_outputs", tied),
    }


def _write(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "num_layers": model["encoder_layers"],
        "num_decoder_layers": model["layers"],
        "feed_forward_proj": _WRITTEN[model["activation"]],
        "tie_word_embeddings": model["tied_embeddings"],
        **({} if name == "MT5" else {"scale_decoder_outputs": model["scaled_head"]}),
    }


def _alone(model: Any) -> bool:
    return model.architecture == "encoder"  # type: ignore[no-any-return]


def _beside(model: Any) -> bool:
    return not _alone(model)


def _stack(ours: str, theirs: str, feed_forward: int, only: Callable[[Any], bool]) -> tuple[Weight, ...]:
    """Rows of the encoder or the decoder; in `feed_forward` is the number of that sub-layer in a block."""
    block = f"{theirs}block.{{layer}}.layer."
    found = {
        "attention_norm": "0.layer_norm",
        "feed_forward_norm": f"{feed_forward}.layer_norm",
        "feed_forward.down": f"{feed_forward}.DenseReluDense.wo",
    }
    letters = {"query": "q", "key": "k", "value": "v", "output": "o"}
    found |= {f"attention.{name}": f"0.SelfAttention.{letter}" for name, letter in letters.items()}
    if feed_forward == 2:
        found |= {f"cross_attention.{name}": f"1.EncDecAttention.{letter}" for name, letter in letters.items()}
        found["cross_attention_norm"] = "1.layer_norm"
    return (
        *renamed(found, f"{ours}blocks.{{layer}}.", block, only=only),
        *renamed({"norm": "final_layer_norm"}, ours, theirs, only=only),
        Weight(
            (f"{ours}relative_bias.table.weight",),
            f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            only=only,
        ),
    )


_STACKS = (("encoder.", "encoder.", 1, _beside), ("", "decoder.", 2, _beside), ("", "encoder.", 1, _alone))
"""Ours, theirs, the number of the feed-forward layer in a block, and the models that have it so."""


def _inner(gated: bool) -> tuple[Weight, ...]:
    names = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    return tuple(
        row
        for ours, theirs, number, only in _STACKS
        for row in renamed(
            {f"feed_forward.{name}": f"DenseReluDense.{inner}" for name, inner in names.items()},
            f"{ours}blocks.{{layer}}.",
            f"{theirs}block.{{layer}}.layer.{number}.",
            only=only,
        )
    )


def table(gated: bool, multilingual: bool = False) -> HuggingFace:
    """T5 with or without a gate, whose tensors have other names; `multilingual`: mT5, by classes of its own."""
    name = "MT5" if multilingual else "T5"
    vocabulary, layers, heads, inner = (250112, 8, 6, 1024) if multilingual else (32128, 6, 8, 2048)
    return HuggingFace(
        model_type=name.lower(),
        repeats="t5" if multilingual else None,
        classes=(f"{name}ForConditionalGeneration", "T5WithLMHeadModel", f"{name}Model"),
        heads={
            "classification": HeadClass(
                f"{name}ForSequenceClassification",
                "classification_head.out_proj",
                {"pooler": "classification_head.dense"},
                pooling="last",
                body="transformer.",
                rate=0.0,
                drops_first=True,
            ),
            "token_classification": HeadClass(
                f"{name}{_OF_ENCODER}", "classifier", body="transformer.", rate=0.0, special_tokens="eos"
            ),
            "span": HeadClass(f"{name}ForQuestionAnswering", "qa_outputs", rate=None),
        },
        needs=lambda model: (
            f"model.architecture is encoder, where {name} has a class for it with a head of token_classification alone"
            if model["architecture"] == "encoder" and (model["head"] or {}).get("name") != "token_classification"
            else None
        ),
        architecture="encoder_decoder",
        tokenizer="" if multilingual else "T5Tokenizer",
        token_ids={"decoder_start_token_id": "pad"},
        aliases={
            "hidden_size": "d_model",
            "num_attention_heads": "num_heads",
            "num_hidden_layers": "num_layers",
            "head_dim": "d_kv",
        },
        fields=(
            ("vocab_size", "vocab_size", vocabulary),
            ("num_layers", "encoder_layers", layers),
            ("d_model", "hidden_size", 512),
            ("num_heads", "heads", heads),
            ("d_kv", "head_size", 64),
            ("d_ff", "ffn_size", inner),
            ("n_positions", "max_positions", 512),
            ("relative_attention_num_buckets", "relative_buckets", 32),
            ("relative_attention_max_distance", "relative_max_distance", 128),
            ("layer_norm_epsilon", "norm_eps", 1e-6),
        ),
        dropout=("dropout_rate",),
        dropout_rate=0.1,
        attention_dropout=("dropout_rate",),
        unused=("initializer_factor", "classifier_dropout"),
        read=partial(_read, multilingual=multilingual),
        write=partial(_write, name=name),
        weights=(
            Weight(("embedding.weight",), "shared.weight"),
            Weight(("head.weight",), "lm_head.weight"),
            *(row for stack in _STACKS for row in _stack(*stack)),
            *_inner(gated),
        ),
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        copies={"encoder.embed_tokens.weight": "shared.weight", "decoder.embed_tokens.weight": "shared.weight"},
    )


HUGGING_FACE = table(gated=False)
