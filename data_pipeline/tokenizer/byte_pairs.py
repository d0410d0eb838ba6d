"""Byte-level BPE by tiktoken, in a fifth of the time that the `tokenizers` library takes, where both give the same.

tiktoken has no list of merges: it joins whichever neighbours spell a token, the one of the lowest rank first and of
those the leftmost, and takes a whole word that is a token as it is. That is what merges in order come to under the
conditions that `_ranks` checks. For suppose that both have done the same so far, and that tiktoken now joins x and y to
the token t. No merge has crossed the ends of xy, so what happened within is what happens to t alone, and x and y are
what t alone comes to before the last step. Hence tiktoken makes a token of the same two parts everywhere, and

- if x and y are among the merges, they are next there too: merges stand in the order of ranks, those of a token side by
  side, and all places that the lowest rank allows have these two parts;
- if they are not, merges never make t of t alone. `_ranks` lets that pass only for tokens of which all ways to cut them
  into two are among the merges, x and y too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Container
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from data_pipeline.base.unicode import holds_long_run
from data_pipeline.tokenizer.added_tokens import around, matched_as_they_are
from data_pipeline.tokenizer.cuts import tiktoken_cut

if TYPE_CHECKING:
    import tokenizers

NEVER = "<|never|>"
"""tiktoken wants a special token. Text that spells it out stays text."""
TEXT_BYTES = {*range(0xC0), *range(0xC2, 0xF5)}
"""The bytes that UTF-8 has: some vocabularies lack the others."""
SPARED_BYTES = {byte: chr(byte) for byte in (*range(9), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F)} | {
    0xF1: "\U00040000-\U0007ffff",
    0xF2: "\U00080000-\U000bffff",
    0xF3: "\U000c0000-\U000fffff",
    0xF4: "\U00100000-\U0010ffff",
}
"""Bytes that some vocabularies lack because hardly a text has them, each with the characters that it occurs in: control
characters, and the first byte of characters that are not assigned, of private use, or only select a form of others."""

Encode = Callable[[str], np.ndarray]
"""A text to its int32 tokens."""


def byte_characters() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte (Radford et al. 2019, `bytes_to_unicode`): itself where it
    is visible, else the next one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(0x100 + i) for i, byte in enumerate(hidden)}


def without_bytes(spared: Collection[int]) -> Callable[[str], bool]:
    """Whether none of these `SPARED_BYTES` is in the UTF-8 of a text."""
    find = re.compile(f"[{''.join(SPARED_BYTES[byte] for byte in spared)}]").search
    return lambda text: find(text) is None


def lacking_bytes(vocabulary: Container[str]) -> list[int]:
    """The bytes of UTF-8 that a byte-level vocabulary has no token for."""
    written = byte_characters()
    return [byte for byte in sorted(TEXT_BYTES) if written[byte] not in vocabulary]


def fast_encoder(backend: tokenizers.Tokenizer, spared: Collection[int] = ()) -> Encode | None:
    """What gives the tokens that `backend` gives, which takes special tokens in a text for text; None where tiktoken
    may give others.

    Args:
        spared: bytes that occur in no text that it will be given.
    """
    from tokenizers.models import BPE

    if not isinstance(backend.model, BPE):
        return None
    layout = orjson.loads(backend.to_str())
    model, added, normalizer = layout["model"], layout["added_tokens"], backend.normalizer
    cut = tiktoken_cut(layout["pre_tokenizer"] or {})
    others = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if (
        cut is None
        or layout["normalizer"] not in (None, {"type": "NFC"})
        or any(model.get(name) for name in others)
        or not matched_as_they_are(added, normalizer)
    ):
        return None
    ranks = _ranks(backend, model, spared)
    if ranks is None:
        return None
    # As in the library: those that are matched in the text as it is, then normalisation, then the others.
    encode = around([token for token in added if token["normalized"]], _words_encoder(cut, ranks))
    if normalizer is not None:
        encode = _composing(normalizer, encode)
    encode = around([token for token in added if not token["normalized"]], encode)

    def encode_any(text: str) -> np.ndarray:
        try:
            return encode(text)
        except ValueError:  # tiktoken's regular expressions give up at a million spaces in a row
            return np.array(backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    return encode_any


def _words_encoder(cut: str, tokens: dict[str, int]) -> Encode:
    """tiktoken's. `tokens`: ids by the spelling of tokens, in the order of ranks."""
    import tiktoken

    letters = str.maketrans({character: chr(byte) for byte, character in byte_characters().items()})
    ranks = {text.translate(letters).encode("latin-1"): rank for rank, text in enumerate(tokens)}
    encoding = tiktoken.Encoding("words", pat_str=cut, mergeable_ranks=ranks, special_tokens={NEVER: len(ranks)})
    encode = partial(encoding.encode_to_numpy, disallowed_special=())
    ids = np.array(list(tokens.values()), dtype=np.int32)
    if np.array_equal(ids, np.arange(len(ids))):
        return lambda text: encode(text).view(np.int32)
    return lambda text: ids[encode(text)]


def _composing(normalizer: tokenizers.normalizers.Normalizer, encode: Encode) -> Encode:
    """`encode` of a text's NFC. Python says of most texts that they are in NFC, in a tenth of the time: any library
    agrees, of whatever version of Unicode, if Python knows all characters (Unicode Standard Annex 15, section 3). Those
    that it does not know are not printable to it."""

    def composed(text: str) -> str:
        if text.isascii():
            return text
        # Long runs of marks take Python the square of their length.
        known = not holds_long_run("NFC", text) and all(map(str.isprintable, text.split("\n")))
        return text if known and unicodedata.is_normalized("NFC", text) else normalizer.normalize_str(text)

    return lambda text: encode(composed(text))


def _ranks(backend: tokenizers.Tokenizer, model: dict[str, Any], spared: Collection[int]) -> dict[str, int] | None:
    """Ids by the spelling of tokens, in the order in which tiktoken has to prefer them. None where it may not come to
    what the merges come to."""
    vocabulary: dict[str, int] = model["vocab"]
    if set(lacking_bytes(vocabulary)) - set(spared):
        return None
    written = byte_characters()
    letters = written.values() & vocabulary.keys()
    tokens = {letter: vocabulary[letter] for letter in sorted(letters, key=vocabulary.__getitem__)}
    last = ""
    for left, right in model["merges"]:
        text = left + right
        if text != last:
            if text in tokens or not letters.issuperset(text):
                return None
            tokens[text] = vocabulary[text]
            last = text
    if not model.get("ignore_merges"):
        return tokens if not _not_made_of_themselves(backend, tokens) else None
    # Words that are tokens are taken as they are, so there may be tokens that no merge makes.
    tokens |= {text: token for text, token in vocabulary.items() if text not in tokens and letters.issuperset(text)}
    odd = {text: _cuts(text, tokens) for text in _not_made_of_themselves(backend, tokens)}
    for left, right in model["merges"]:
        odd.get(left + right, set()).discard(len(left))
    return None if any(odd.values()) else tokens


def _cuts(text: str, tokens: dict[str, int]) -> set[int]:
    """The places where a token can be cut into two tokens."""
    return {i for i in range(1, len(text)) if text[:i] in tokens and text[i:] in tokens}


def _not_made_of_themselves(backend: tokenizers.Tokenizer, tokens: dict[str, int]) -> list[str]:
    """The tokens that merges alone do not make of the token's own bytes."""
    model = backend.model
    whole_words = model.ignore_merges
    model.ignore_merges = False
    try:
        return [text for text in tokens if len(model.tokenize(text)) > 1]
    finally:
        model.ignore_merges = whole_words
        if hasattr(model, "_clear_cache"):
            model._clear_cache()
