"""Added tokens of a `tokenizer.json` that are no special tokens, such as runs of spaces: text becomes them wherever it
spells them out, and is encoded around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tokenizers


def matched_as_they_are(added: Sequence[dict[str, Any]], normalizer: tokenizers.normalizers.Normalizer | None) -> bool:
    """Whether no white space around them, no words and no normalisation decide where text becomes added tokens."""
    return not any(
        token["single_word"]
        or token["lstrip"]
        or token["rstrip"]
        or (
            token["normalized"]
            and normalizer is not None
            and normalizer.normalize_str(token["content"]) != token["content"]
        )
        for token in added
        if not token["special"]
    )


def around(added: Sequence[dict[str, Any]], encode: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """`encode`, but that text becomes those of `added` that are not special: the leftmost first, of those the longest.

    Special ones are text, and still nothing is found within them, as in the library.
    """
    ids = {token["content"]: np.array([token["id"]], dtype=np.int32) for token in added if not token["special"]}
    if not ids:
        return encode
    contents = sorted((token["content"] for token in added if token["content"]), key=len, reverse=True)
    find = re.compile("|".join(map(re.escape, contents))).finditer

    def encode_around(text: str) -> np.ndarray:
        parts: list[np.ndarray] = []
        start = 0
        for match in find(text):
            token = ids.get(match[0])
            if token is None:
                continue
            if match.start() > start:
                parts.append(encode(text[start : match.start()]))
            parts.append(token)
            start = match.end()
        if not parts:
            return encode(text)
        if start < len(text):
            parts.append(encode(text[start:]))
        return np.concatenate(parts)

    return encode_around
