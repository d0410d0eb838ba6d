"""Rotary settings of a config.json: transformers 5's `rope_parameters`, and `rope_theta` with `rope_scaling` before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import Settings, Unsupported

_KEYS = {
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "partial_rotary_factor",
}  # fmt: skip


def read_rope(settings: Settings, base: float, share: float | None = None, share_key: str = "") -> dict[str, Any]:
    """rotary_base, rotary_scaling and, where `share` is given, rotary_fraction.

    Args:
        base: transformers' default for the class.
        share: the default fraction of a head's channels that is rotated; None: the class always rotates all.
        share_key: the key of config.json that had it before transformers 5.

    Raises:
        Unsupported: a way of stretching that our model does not have.
    """
    given = dict(settings.take("rope_parameters", {}))
    given.update(settings.take("rope_scaling", {}))
    base = given.get("rope_theta") or settings.take("rope_theta", settings.take("rotary_emb_base", base))
    found = {"rotary_base": float(base), "rotary_scaling": read_scaling(given)}
    if share is None:
        part = given.get("partial_rotary_factor") or settings.take("partial_rotary_factor", 1.0)
        if part != 1.0:
            raise Unsupported(f"partial_rotary_factor is {part}, but this class rotates all channels; remove it")
        return found
    part = given.get("partial_rotary_factor") or settings.take(share_key, settings.take("partial_rotary_factor", share))
    return {**found, "rotary_fraction": float(part)}


def read_scaling(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """`model.rotary_scaling` from a dictionary of transformers."""
    kind = given.get("rope_type") or given.get("type") or "default"
    if unknown := sorted(set(given) - _KEYS):
        raise Unsupported(
            f"rope_parameters.{unknown[0]} is {given[unknown[0]]!r}, but llmscale knows {', '.join(sorted(_KEYS))}"
            f" there; import a model without it"
        )
    if kind == "default":
        return None
    if kind == "linear":
        return {"kind": "linear", "factor": float(given["factor"])}
    if kind == "llama3":
        return {
            "kind": "llama3",
            "factor": float(given["factor"]),
            "low_frequency_factor": float(given["low_freq_factor"]),
            "high_frequency_factor": float(given["high_freq_factor"]),
            "original_positions": int(given["original_max_position_embeddings"]),
        }
    raise Unsupported(
        f"rope_parameters.rope_type is {kind!r}, but llmscale knows default, linear and llama3 there; import a model"
        f" with one of them"
    )


def write_rope(model: Mapping[str, Any], **more: float) -> dict[str, Any]:
    """The keys of both forms: readers that know only the older ones would silently take another base."""
    scaling = write_scaling(model["rotary_scaling"])
    found: dict[str, Any] = {
        "rope_theta": model["rotary_base"],
        "rope_parameters": {"rope_theta": model["rotary_base"], **more, **scaling},
    }
    return found if scaling == {"rope_type": "default"} else {**found, "rope_scaling": scaling}


def write_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """transformers' dictionary from `model.rotary_scaling`."""
    if scaling is None:
        return {"rope_type": "default"}
    found = {"rope_type": scaling["kind"], "factor": scaling["factor"]}
    if scaling["kind"] == "llama3":
        found["low_freq_factor"] = scaling["low_frequency_factor"]
        found["high_freq_factor"] = scaling["high_frequency_factor"]
        found["original_max_position_embeddings"] = scaling["original_positions"]
    return found
