"""Byte-level BPE by tiktoken, in a fifth of the time that the `tokenizers` library takes, where both give the same.

tiktoken has no list of merges: it joins whichever neighbours spell a token, the one of the lowest rank first, and takes
a whole word that is a token as it is. That is what merges in order come to if every token has one merge that makes it,
ranks follow the merges, and the merges make every token of its own bytes (`_made_of_itself`). For suppose that tiktoken
joins x and y to a token that merges make of others than x and y. No merge has crossed the ends of xy, so merges on xy
alone come by x and y too, and could not go on from there to the one token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tokenizers

WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""How GPT-2 cuts text (Radford et al. 2019, `encoder.py`), in the form that tiktoken uses: possessive, so that long
runs of a kind of character cost no backtracking."""
NEVER = "<|never|>"
"""tiktoken wants a special token. Text that spells it out stays text."""


def byte_characters() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte (Radford et al. 2019, `bytes_to_unicode`): itself where it
    is visible, else the next one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


def fast_encoder(backend: tokenizers.Tokenizer) -> Callable[[str], np.ndarray] | None:
    """A function from a text to its int32 tokens, or None where tiktoken may give others than `backend`, which takes
    special tokens in a text for text."""
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    if not (isinstance(backend.model, BPE) and isinstance(backend.pre_tokenizer, ByteLevel)):
        return None
    layout = json.loads(backend.to_str())
    tokens = _tokens_by_rank(layout["model"]) if _cuts_like_gpt2(layout) else None
    if tokens is None or not _made_of_itself(backend, tokens):
        return None
    import tiktoken

    letters = {character: byte for byte, character in byte_characters().items()}
    ranks = {bytes(letters[character] for character in text): rank for rank, text in enumerate(tokens)}
    encoding = tiktoken.Encoding("words", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={NEVER: len(ranks)})
    encode = partial(encoding.encode_to_numpy, disallowed_special=())
    ids = np.array(list(tokens.values()), dtype=np.int32)
    if np.array_equal(ids, np.arange(len(ids))):
        return lambda text: encode(text).view(np.int32)
    return lambda text: ids[encode(text)]


def _cuts_like_gpt2(layout: dict[str, Any]) -> bool:
    """Whether text reaches the BPE as it is but cut into words, and nothing but merges makes tokens of words."""
    model, words = layout["model"], layout["pre_tokenizer"]
    others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    return (
        layout["normalizer"] is None
        and words["use_regex"]
        and not words["add_prefix_space"]
        and not any(model.get(name) for name in others)
        and all(token["special"] for token in layout["added_tokens"])
    )


def _tokens_by_rank(model: dict[str, Any]) -> dict[str, int] | None:
    """Ids by the spelling of tokens: all bytes, then what merges make, in their order. None where bytes are missing,
    or merges make a token twice."""
    vocabulary: dict[str, int] = model["vocab"]
    letters = set(byte_characters().values())
    if not letters <= vocabulary.keys():
        return None
    tokens = {letter: vocabulary[letter] for letter in sorted(letters, key=vocabulary.__getitem__)}
    for left, right in model["merges"]:
        text = left + right
        if text in tokens or not letters.issuperset(text):
            return None
        tokens[text] = vocabulary[text]
    return tokens


def _made_of_itself(backend: tokenizers.Tokenizer, tokens: dict[str, int]) -> bool:
    tokenize = backend.model.tokenize
    return all(len(tokenize(text)) == 1 for text in tokens)
