"""What a generation_config.json of transformers says, in the words of `llmscale.generate.Settings`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data_pipeline.base.errors import UserError

_NUMBERS: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "repetition_penalty": ("repetition_penalty", float),
    "length_penalty": ("length_penalty", float),
    "num_beams": ("beams", int),
    "max_new_tokens": ("max_new_tokens", int),
    "min_new_tokens": ("min_new_tokens", int),
    "max_length": ("max_length", int),
    "min_length": ("min_length", int),
}
"""Fields of `Settings` and their types, by transformers' names."""
TOKENS = {
    "suppress_tokens": "suppress_tokens",
    "begin_suppress_tokens": "begin_suppress_tokens",
    "forced_bos_token_id": "first_token",
    "forced_eos_token_id": "last_tokens",
}
"""The same of fields that hold token ids."""
IDS = (*TOKENS, "eos_token_id", "decoder_start_token_id")
"""Keys whose token ids the model must have."""
_NEUTRAL: dict[str, Any] = {
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0, "num_beam_groups": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "min_p": 0.0, "top_h": 1.0, "penalty_alpha": 0.0, "dola_layers": None, "guidance_scale": 1.0,
    "exponential_decay_length_penalty": None, "bad_words_ids": None, "force_words_ids": None, "constraints": None,
    "sequence_bias": None, "watermarking_config": None, "forced_decoder_ids": None, "num_return_sequences": 1,
    "max_time": None,
}  # fmt: skip
"""Keys of what we do not have, and the value that asks for nothing."""
KEYS = frozenset({*_NUMBERS, *TOKENS, *_NEUTRAL, "do_sample", "early_stopping", "stop_strings"})
"""Keys by which older config.json files say the same."""


def read_defaults(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Settings` from a generation_config.json; what it does not say is left out, but that sampling without
    more is at a temperature of 1 from the 50 likeliest tokens, as in transformers.

    Raises:
        UserError: a value of the wrong kind; names the key.
    """
    found: dict[str, Any] = {}
    for key, (name, kind) in _NUMBERS.items():
        value = generation.get(key)
        if value is not None:
            found[name] = _number(key, value, kind)
    for key, name in TOKENS.items():
        tokens = token_ids(generation, key)
        if tokens:
            found[name] = tokens[0] if name == "first_token" else tokens
    strings = generation.get("stop_strings")
    if strings is not None:
        found["stop"] = _texts("stop_strings", strings)
    early = generation.get("early_stopping")
    if early is not None:
        if early != "never" and not isinstance(early, bool):
            raise UserError(f'early_stopping is {early!r}, but must be true, false or "never"; repair it')
        found["early_stopping"] = early
    samples = generation.get("do_sample")
    if samples is not None and not isinstance(samples, bool):
        raise UserError(f"do_sample is {samples!r}, but must be true or false; repair it")
    if samples:
        found = {"temperature": 1.0, "top_k": 50, **found, "beams": 1}
    elif samples is not None or found.get("beams", 1) > 1:
        found["temperature"] = 0.0
    if "max_new_tokens" in found:
        found.pop("max_length", None)  # there, too, the other counts for nothing then
    if found.get("top_p", 0) > 1:
        found["top_p"] = 1.0
    return found


def unmet(generation: Mapping[str, Any]) -> list[str]:
    """What a generation_config.json asks for that we do not have, as key=value."""
    lacking = [
        f"{key}={generation[key]!r}"
        for key, neutral in _NEUTRAL.items()
        if generation.get(key) not in (None, neutral, [], {})
    ]
    if generation.get("do_sample") and (generation.get("num_beams") or 1) > 1:
        lacking.append(f"num_beams={generation['num_beams']} while sampling")
    return lacking


def token_ids(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The token ids of a key that holds one, a list of them, or nothing.

    Raises:
        UserError: it holds something else.
    """
    value = values.get(key)
    if value is None:
        return ()
    tokens = value if isinstance(value, list) else [value]
    for token in tokens:
        if type(token) is not int:
            raise UserError(f"{key} is {value!r}, but must be a token id, a list of them or null; repair it")
    return tuple(tokens)


def _number(key: str, value: Any, kind: type) -> Any:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not whole):
        raise UserError(f"{key} is {value!r}, but must be {'a whole' if kind is int else 'a'} number; repair it")
    if not math.isfinite(value):
        raise UserError(f"{key} is {value!r}, but must be finite; repair it")
    return kind(value)


def _texts(key: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"{key} is {value!r}, but must be a text or a list of texts; repair it")
    return tuple(texts)
