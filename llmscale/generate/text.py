"""From new tokens to text: whole characters only, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.tokenizer import Tokenizer

BEFORE = 8
"""Tokens of the context that the new ones are decoded with, since some tokenizers drop the space of a first token."""


class Text:
    """The text of tokens that come one by one."""

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], stop: Sequence[str] = ()) -> None:
        """
        Args:
            context: tokens that stand before, in the same text.
            stop: texts that end it.
        """
        self._tokenizer = tokenizer
        self._before = list(context[-BEFORE:])
        self._prefix = tokenizer.decode(self._before)
        self._stop = tuple(stop)
        self.tokens: list[int] = []
        self.text = ""
        """What is certain of it."""
        self.stopped = False
        """Whether a stop text came."""

    def add(self, token: int) -> str:
        """Take one more token and give the text that it makes certain."""
        self.tokens.append(token)
        return self._settle(last=False)

    def finish(self) -> str:
        """There are no more tokens: the text that was held back."""
        return "" if self.stopped else self._settle(last=True)

    def _settle(self, last: bool) -> str:
        text = self._decoded()
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped = True
            text = text[: min(places)]
        elif not last:
            # A character may be spread over several tokens, and so may a stop text.
            text = text.rstrip("\ufffd")
            text = text[: len(text) - self._beginning(text)]
        more = text[len(self.text) :]
        self.text += more
        return more

    def _decoded(self) -> str:
        # A model may have more tokens than its tokenizer; those have no text.
        tokens = [token for token in self.tokens if token < self._tokenizer.vocab_size]
        text = self._tokenizer.decode([*self._before, *tokens])
        if text.startswith(self._prefix):
            return text[len(self._prefix) :]
        return self._tokenizer.decode(tokens)

    def _beginning(self, text: str) -> int:
        """Characters at the end of `text` that may be the beginning of a stop text."""
        longest = 0
        for stop in self._stop:
            for size in range(1, min(len(stop), len(text) + 1)):
                if text.endswith(stop[:size]):
                    longest = max(longest, size)
        return longest
