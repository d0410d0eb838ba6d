"""Rotary settings of a config.json: transformers 5's `rope_parameters`, and `rope_theta` with `rope_scaling` before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmscale.families.hugging_face import Settings, Unsupported

_TURNS = {"beta_fast": 32.0, "beta_slow": 1.0}
_KINDS = ("default", "linear", "llama3", "yarn")


def read_rope(settings: Settings, base: float, positions: int) -> dict[str, Any]:
    """rotary_base and rotary_scaling of a class that rotates all channels of a head, as transformers reads them.

    Args:
        base: transformers' default for the class.
        positions: the context, which llama3 takes for the one before the stretch where none is named.

    Raises:
        Unsupported: a way of stretching that our model does not have, or a value that is missing.
    """
    given = given_rope(settings)
    found = {
        "rotary_base": _base(settings, given, "rope_theta", base),
        "rotary_scaling": _scaling(settings, given, positions),
    }
    for place in (given, settings):
        if (part := place.take("partial_rotary_factor", 1.0, null=1.0)) != 1.0:
            key = place.where("partial_rotary_factor")
            raise Unsupported(f"{key} is {part}, but this class rotates all channels; remove it")
    _note_unread(settings, given)
    return found


def read_partial_rope(
    settings: Settings, base_key: str, share: float, share_key: str, positions: int
) -> dict[str, Any]:
    """As `read_rope`, with rotary_fraction, for a class that has names of its own for both (GPT-NeoX).

    Args:
        base_key: the key of config.json that had the base before transformers 5; `rope_theta` is not read there.
        share: the default fraction of a head's channels that is rotated.
        share_key: the key of config.json that had it before transformers 5.
    """
    given = given_rope(settings)
    found: dict[str, Any] = {"rotary_base": _base(settings, given, base_key, 10000.0)}
    settings.pass_over([share_key])
    default = share if "partial_rotary_factor" in given.values else settings.take(share_key, share)
    found["rotary_fraction"] = given.take("partial_rotary_factor", default)
    found["rotary_scaling"] = _scaling(settings, given, positions)
    _note_unread(settings, given)
    return found


def given_rope(settings: Settings) -> Settings:
    """The object of rotary settings that counts: `rope_scaling`, unless it is empty."""
    older, newer = settings.table("rope_scaling"), settings.table("rope_parameters")
    return older if older.values else newer


def _base(settings: Settings, given: Settings, key: str, default: float) -> float:
    settings.pass_over([key])
    if "rope_theta" not in given.values:
        default = settings.take(key, default)
    return given.take("rope_theta", default)  # type: ignore[no-any-return]


def _scaling(settings: Settings, given: Settings, positions: int) -> dict[str, Any] | None:
    found = read_scaling(given, positions)
    if found is not None and found["kind"] != "linear":
        # Some files have it outside (Phi-3's kind), which counts for more.
        found["original_positions"] = settings.take("original_max_position_embeddings", found["original_positions"])
    return found


def _note_unread(settings: Settings, given: Settings) -> None:
    if unread := given.unread():
        settings.notes.append(f"{', '.join(unread)} not used: transformers does not read it there")


def read_scaling(given: Settings, positions: int) -> dict[str, Any] | None:
    """`model.rotary_scaling` from an object of transformers.

    Raises:
        Unsupported: another kind than our model has, or a value that is missing.
    """
    named = "rope_type" if "rope_type" in given.values else "type"
    kind = given.take(named, "default")
    given.pass_over(["type"])
    if kind not in _KINDS:
        raise Unsupported(
            f"{given.where(named)} is {kind!r:.60}, but llmscale knows {', '.join(_KINDS[:-1])} and {_KINDS[-1]} there;"
            f" import a model with one of them"
        )
    if kind == "default":
        return None
    factor = given.given("factor", float)
    if factor < 1:
        raise Unsupported(f"{given.where('factor')} is {factor}, but a stretch is 1 or more; repair it")
    if kind == "linear":
        return {"kind": "linear", "factor": factor}
    if kind == "yarn":
        return _read_yarn(given, factor, positions)
    low, high = given.given("low_freq_factor", float), given.given("high_freq_factor", float)
    if not 0 < low < high:
        raise Unsupported(
            f"{given.where('low_freq_factor')} is {low} and high_freq_factor {high}, but must be above 0 and below it;"
            f" repair them"
        )
    return {
        "kind": "llama3",
        "factor": factor,
        "low_frequency_factor": low,
        "high_frequency_factor": high,
        "original_positions": given.take("original_max_position_embeddings", positions),
    }


def _read_yarn(given: Settings, factor: float, positions: int) -> dict[str, Any]:
    given.require("truncate", True)
    magnitude = given.take("attention_factor", None, float)
    over, under = (given.take(key, 0.0, float, null=0.0) for key in ("mscale", "mscale_all_dim"))
    if magnitude is None:
        magnitude = mscale(factor, over) / mscale(factor, under) if over and under else mscale(factor, 1.0)
    # transformers takes 0 for what is not given.
    fast, slow = (given.take(key, default, float, null=default) for key, default in _TURNS.items())
    return {
        "kind": "yarn",
        "factor": factor,
        "original_positions": given.take("original_max_position_embeddings", positions),
        "fast_turns": fast or _TURNS["beta_fast"],
        "slow_turns": slow or _TURNS["beta_slow"],
        "magnitude": magnitude,
    }


def mscale(factor: float, weight: float) -> float:
    """The factor of lengths for a stretched context (Peng et al. 2023, section 3.4), with a weight (DeepSeek-V2)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_rope(model: Mapping[str, Any], **more: float) -> dict[str, Any]:
    """The keys of both forms: readers that know only the older ones would silently take another base."""
    scaling = write_scaling(model["rotary_scaling"])
    stretched = scaling != {"rope_type": "default"}
    found: dict[str, Any] = {
        "rope_theta": model["rotary_base"],
        "rope_parameters": {"rope_theta": model["rotary_base"], **more, **scaling},
    }
    # Where both are given, transformers 5 reads the older one, and the base and the fraction where they were before.
    return {**found, "rope_scaling": scaling} if stretched else found


def write_scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """transformers' dictionary from `model.rotary_scaling`."""
    if scaling is None:
        return {"rope_type": "default"}
    found = {"rope_type": scaling["kind"], "factor": scaling["factor"]}
    if scaling["kind"] == "llama3":
        found["low_freq_factor"] = scaling["low_frequency_factor"]
        found["high_freq_factor"] = scaling["high_frequency_factor"]
        found["original_max_position_embeddings"] = scaling["original_positions"]
    if scaling["kind"] == "yarn":
        found["beta_fast"], found["beta_slow"] = scaling["fast_turns"], scaling["slow_turns"]
        found["attention_factor"] = scaling["magnitude"]
        found["original_max_position_embeddings"] = scaling["original_positions"]
    return found
