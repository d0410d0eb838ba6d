"""How published byte-level BPEs cut text into words, in the form that tiktoken takes: a regular expression of which
each match is a word."""

from __future__ import annotations

from typing import Any

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""Radford et al. 2019, `encoder.py`: GPT-2, GPT-Neo, GPT-J, GPT-NeoX, RoBERTa, OPT, OLMo. Possessive, so that long runs
of a kind of character cost no backtracking."""
GPT2_BETWEEN_DIGITS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++(?=\p{N}|$)|\s+(?!\S)|\s"
"""The same of what lies between digits, each of which is a word by itself: StarCoder, SmolLM."""

SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
"""How all of `SPLITS` end."""
SPACES_AT_ONCE = r"\s*[\r\n]|\s++$|\s+(?!\S)|\s"
"""The same: `\\s*` leaves nothing to the `+` behind it, and white space that ends a text needs no look for its end."""
SPLITS = {
    "GPT-4, Llama 3, OLMo 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES,
    "Qwen 1.5 to 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES,
    "Qwen 3.5": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + SPACES,
    "GPT-4o, gpt-oss": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES,
    "Mistral NeMo, Nemotron 3": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + SPACES,
}
"""Patterns of `Split`, as published, by the models that have them."""


def tiktoken_cut(steps: dict[str, Any]) -> str | None:
    """The cut that a `pre_tokenizer` of a tokenizer.json describes; None where it is none of these."""
    match steps:
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return GPT2 if steps.get("use_regex", True) else None
        case {"type": "Sequence", "pretokenizers": [first, {"type": "ByteLevel", "add_prefix_space": False} as last]}:
            return _of_first(first, cut_again=last.get("use_regex", True))
    return None


def _of_first(step: dict[str, Any], *, cut_again: bool) -> str | None:
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return GPT2_BETWEEN_DIGITS if cut_again else None
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}:
            # What lies between the matches, of which there is nothing, is kept or not.
            whole = (behavior, invert) in (("Isolated", False), ("Removed", True))
            if pattern in SPLITS.values() and whole and not cut_again:
                return pattern.removesuffix(SPACES) + SPACES_AT_ONCE
    return None
