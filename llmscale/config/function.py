"""Which function a model section makes of given weights: what must agree where weights come from another run."""

from __future__ import annotations

from typing import Any, TypeVar

from llmscale.config.identity import flatten
from llmscale.config.model import OF_HEADS, ModelConfig

_Kind = TypeVar("_Kind")
_NO_FUNCTION = ("family", "vocab_size", "vocab_multiple", "init_std", "init_scheme", "lora")
"""Settings that say how a model begins, what others say, or which tensors it has besides."""
_NO_OUTPUT = ("max_positions", "dropout", "attention_dropout", "dropout_scheme")
"""Others of which the outputs of given weights do not depend; what is not listed counts."""
_OTHER_OF_EXPERTS = {"capacity_factor", "balance_weight", "z_weight"}
"""Those that act in training alone."""


def function_differences(ours: ModelConfig, theirs: ModelConfig, *, head: bool = True) -> dict[str, tuple[Any, Any]]:
    """Settings by which two models of the same tensors compute something else: both values by dotted key.

    Values that are not given count as what they come to, those of parts that a model does not have not at all, and
    what differs only since it follows from another setting is left out.

    Args:
        head: whether the heads count.
    """
    mine, other = _outputs(ours), _outputs(theirs)
    given, theirs_given = (dict(flatten(model.model_dump(mode="json"), "model.")) for model in (ours, theirs))
    differing = {key: (mine.get(key), other.get(key)) for key in {**mine, **other} if mine.get(key) != other.get(key)}
    if not head:
        differing = {key: both for key, both in differing.items() if key.split(".")[1] not in OF_HEADS}
    return {key: both for key, both in differing.items() if given.get(key) != theirs_given.get(key)} or differing


def _outputs(model: ModelConfig) -> dict[str, Any]:
    settings = {key: value for key, value in function_of(model).items() if key not in _NO_OUTPUT}
    return dict(flatten(settings, "model."))


def function_of(model: ModelConfig) -> dict[str, Any]:
    """The settings that decide what a model computes and how it drops out, each spelled out in one way; None where
    another setting switches it off."""
    layers = range(max(model.layers, model.encoder_layer_count))
    kinds = _pattern([model.attention_kind(layer) for layer in layers])
    rotary, relative = model.positions == "rotary", model.positions == "relative"
    both = rotary and {"global", "local"} == set(kinds)
    first = "global" if "global" in kinds else "local"
    scaling = _scaling(model, first) if rotary else None
    settings = {key: value for key, value in resolved(model).items() if not key.startswith("rotary_")}
    settings = {key: value for key, value in settings.items() if key not in _NO_FUNCTION}
    return {
        **settings,
        "attention_scale": model.attention_scale or model.head_channels**-0.5,
        "attention_pattern": kinds,
        "window": model.window if "local" in kinds else None,
        "embedding_multiplier": model.embedding_factor,
        "query_key_norm_over": model.query_key_norm_over if model.query_key_norm else None,
        "rotary_base": model.rotary_base_of(first) if rotary else None,
        "rotary_local_base": model.rotary_base_of("local") if both else None,
        "rotary_fraction": model.rotated_channels / model.head_channels if rotary else None,
        "rotary_interleaved": rotary and model.rotary_interleaved,
        "rotary_pattern": _pattern([model.rotates(layer) for layer in layers]) if rotary else None,
        "rotary_scaling": scaling,
        "rotary_local_scaled": _scaling(model, "local") is not None if both and scaling is not None else None,
        "relative_buckets": model.relative_buckets if relative else None,
        "relative_max_distance": model.relative_max_distance if relative else None,
        "experts": _experts(model),
        # Where no layer is dense there is none.
        "ffn_size": None if all(map(model.has_experts, range(model.layers))) else model.ffn_channels,
    }


def resolved(model: ModelConfig) -> dict[str, Any]:
    """The model section with the sizes and biases that follow from others."""
    return {
        **model.model_dump(mode="json"),
        "kv_heads": model.kv_head_count,
        "head_size": model.head_channels,
        "ffn_size": model.ffn_channels,
        "encoder_layers": model.encoder_layer_count,
        "norm_bias": model.norm == "layernorm" and model.has_bias("norm"),
        "qkv_bias": model.has_bias("qkv"),
        "attention_output_bias": model.has_bias("attention_output"),
    }


def _scaling(model: ModelConfig, kind: str) -> dict[str, Any] | None:
    scaling = model.rotary_scaling_of(kind)
    return None if scaling is None else scaling.function()


def _experts(model: ModelConfig) -> dict[str, Any] | None:
    if model.experts is None:
        return None
    return {**model.experts.model_dump(mode="json", exclude=_OTHER_OF_EXPERTS), "ffn_size": model.expert_channels}


def _pattern(kinds: list[_Kind]) -> list[_Kind]:
    """The shortest pattern that gives all layers their kinds."""
    period = next(p for p in range(1, len(kinds) + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))
    return kinds[:period]
