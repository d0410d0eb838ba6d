"""Texts in which special tokens are spelled out, as chat templates make them, read into tokens."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from data_pipeline.tokenizer.base import Tokenizer
from data_pipeline.tokenizer.hugging_face import HuggingFaceTokenizer

MARK = "\ue000"
"""Breaks up special tokens that a person's text spells out, so that it cannot pose as the template's."""


class SpelledReader:
    """Reads such texts as transformers does: special tokens that are spelled out become these tokens, except where a
    mark breaks them up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spellings = tokenizer.spellings()
        longest_first = sorted(map(re.escape, self._spellings), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first) or "(?!)")

    def harmless(self, text: str) -> str:
        """A person's text, in which marks break up the special tokens."""
        return self._special.sub(lambda found: found[0][0] + MARK + found[0][1:], text.replace(MARK, ""))

    def special(self, text: str, start: int) -> re.Match[str] | None:
        """The first special token that is spelled out in a text from a place on."""
        return self._special.search(text, start)

    def last_special(self, text: str) -> re.Match[str] | None:
        """The last special token that is spelled out in a text."""
        return max(self._special.finditer(text), key=re.Match.start, default=None)

    def read(self, text: str) -> list[int]:
        """Token ids of a whole text."""
        tokens: list[int] = []
        run = ""  # what is read in one go: all but stretches with marks
        place = 0
        for found in [*self._special.finditer(text), None]:
            stretch = text[place : found.start() if found else len(text)]
            if MARK in stretch:
                tokens += [*self._read_run(run), *self._tokenizer.encode(stretch.replace(MARK, ""))]
                run = ""
            else:
                run += stretch
            if found:
                run, place = run + found[0], found.end()
        return tokens + self._read_run(run)

    def _read_run(self, text: str) -> list[int]:
        if not text:
            return []
        if self._library is not None:
            return list(self._library.encode(text, add_special_tokens=False).ids)
        tokens: list[int] = []
        place = 0
        for found in self._special.finditer(text):
            tokens += self._tokenizer.encode(text[place : found.start()])
            tokens.append(self._spellings[found[0]])
            place = found.end()
        return tokens + self._tokenizer.encode(text[place:])

    @cached_property
    def _library(self) -> Any | None:
        """The library's own tokenizer, which decides about spaces beside special tokens as well; None where there is
        none that knows all of them."""
        import tokenizers

        if not isinstance(self._tokenizer, HuggingFaceTokenizer) or self._tokenizer.appended:
            return None
        copy = tokenizers.Tokenizer.from_str(self._tokenizer._backend.to_str())
        copy.encode_special_tokens = False
        return copy
