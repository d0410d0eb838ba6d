"""Which function a model section makes of given weights: what must agree where weights come from another run."""

from __future__ import annotations

from typing import Any

from llmscale.config.identity import flatten
from llmscale.config.model import OF_HEADS, ModelConfig

_OTHER = {
    *("family", "vocab_size", "vocab_multiple", "max_positions"),
    *("dropout", "attention_dropout", "dropout_scheme", "init_std", "init_scheme"),
}
"""Settings of which the outputs of given weights do not depend; what is not listed counts."""
_OTHER_OF_EXPERTS = {"capacity_factor", "balance_weight", "z_weight"}
"""Those that act in training alone."""


def function_differences(ours: ModelConfig, theirs: ModelConfig, *, head: bool = True) -> dict[str, tuple[Any, Any]]:
    """Settings by which two models of the same tensors compute something else: both values by dotted key.

    Values that are not given count as what they come to, those of parts that a model does not have not at all, and
    what differs only since it follows from another setting is left out.

    Args:
        head: whether the heads count.
    """
    mine, other = _function(ours), _function(theirs)
    given, theirs_given = (dict(flatten(model.model_dump(mode="json"), "model.")) for model in (ours, theirs))
    return {
        key: (mine.get(key), other.get(key))
        for key in {**mine, **other}
        if (head or key.split(".")[1] not in OF_HEADS)
        and mine.get(key) != other.get(key)
        and given.get(key) != theirs_given.get(key)
    }


def _function(model: ModelConfig) -> dict[str, Any]:
    settings = model.model_dump(mode="json", exclude=_OTHER)
    settings |= {
        "kv_heads": model.kv_head_count,
        "head_size": model.head_channels,
        "ffn_size": model.ffn_channels,
        "encoder_layers": model.encoder_layer_count,
        "norm_bias": model.has_bias("norm"),
        "qkv_bias": model.has_bias("qkv"),
        "attention_output_bias": model.has_bias("attention_output"),
        "attention_scale": model.attention_scale or model.head_channels**-0.5,
        "rotary_local_base": model.rotary_local_base or model.rotary_base,
        "attention_pattern": _pattern(model),
    }
    local = "local" in settings["attention_pattern"]
    for start, used in (("rotary_", model.positions == "rotary"), ("relative_", model.positions == "relative")):
        settings = {key: value for key, value in settings.items() if used or not key.startswith(start)}
    if not local:
        del settings["window"]
        settings.pop("rotary_local_base", None)
    if not model.query_key_norm:
        del settings["query_key_norm_over"]
    if model.experts is not None:
        experts = model.experts.model_dump(mode="json", exclude=_OTHER_OF_EXPERTS)
        settings["experts"] = {**experts, "ffn_size": model.expert_channels}
    return dict(flatten(settings, "model."))


def _pattern(model: ModelConfig) -> list[str]:
    """The shortest pattern that gives all layers their kinds."""
    layers = max(model.layers, model.encoder_layer_count)
    kinds = [model.attention_kind(layer) for layer in range(layers)]
    period = next(p for p in range(1, layers + 1) if all(kinds[i] == kinds[i % p] for i in range(layers)))
    return list(kinds[:period])
