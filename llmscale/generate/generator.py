"""Prompts to texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import stop_tokens
from llmscale.generate.beams import beam_search
from llmscale.generate.decode import batches, decode
from llmscale.generate.packed import packed
from llmscale.generate.prompts import (
    Context,
    Reading,
    contexts_of,
    require_generative,
    require_length,
    require_room,
    room_for,
)
from llmscale.generate.rules import Rules
from llmscale.generate.sampling import draws_of
from llmscale.generate.settings import Settings
from llmscale.generate.text import Text
from llmscale.model import Transformer

Finish = Literal["end", "stop", "length"]
"""Why a text ended: a token that ends the model's texts; a stop token or text; max_new_tokens."""


@dataclass(frozen=True)
class Completion:
    """What follows a prompt."""

    text: str
    """Without the prompt and without what ended it."""
    tokens: list[int]
    """The new tokens, those of a stop text included, a token that ended the text excluded."""
    finish: Finish


@dataclass(frozen=True)
class Piece:
    """More of the text that follows one of several prompts."""

    prompt: int
    """Its number, from 0."""
    text: str
    completion: Completion | None = None
    """The whole, with the last piece."""


class Generator:
    """A model made ready for generation once, for any number of prompts."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, reading: Reading = "document", *, raw: bool = False
    ) -> None:
        """
        Args:
            model: in evaluation mode; a decoder or an encoder_decoder. Later changes of its weights may not show.
            reading: how a decoder reads prompts (`reading_of` tells it from the objective).
            raw: put no special token around prompts.

        Raises:
            UserError: an encoder.
        """
        require_generative(model.config)
        self.config = model.config
        self.tokenizer = tokenizer
        self.reading = reading
        self.raw = raw
        self._model = packed(model)

    def generate(self, prompts: Sequence[str], settings: Settings) -> list[Completion]:
        """What follows each prompt; see `stream`."""
        return self.complete(self._contexts(prompts), settings)

    def complete(self, contexts: Sequence[Context], settings: Settings) -> list[Completion]:
        """What follows each context; see `stream_contexts`."""
        done = {piece.prompt: piece.completion for piece in self.stream_contexts(contexts, settings)}
        return [completion for _, completion in sorted(done.items()) if completion is not None]

    def stream(self, prompts: Sequence[str], settings: Settings) -> Iterator[Piece]:
        """Pieces of the texts that follow the prompts, as they are made; beam search gives each text in one piece.

        The result for a prompt does not depend on the other prompts, but for rounding.

        Raises:
            UserError: a prompt that is too long for the model's context, an empty one where a source text is needed, a
                stop token outside the vocabulary, or more beams than the vocabulary can fill.
        """
        return self.stream_contexts(self._contexts(prompts), settings)

    def stream_contexts(self, contexts: Sequence[Context], settings: Settings) -> Iterator[Piece]:
        """As `stream`, of what a model reads in place of a prompt."""
        ends = settings.ends(self.tokenizer)
        require_room(contexts, self.config, 1 if settings.shorten else settings.max_new_tokens)
        # Of each context its own, so that none depends on how long the others are.
        limits = [min(settings.max_new_tokens, room_for(context, self.config)) for context in contexts]
        if settings.max_length:
            require_length(contexts, settings.max_length)
            limits = [
                min(limit, settings.max_length - len(context.tokens))
                for limit, context in zip(limits, contexts, strict=True)
            ]
        settings = settings.within(max(limits, default=1))
        draws = draws_of([context.key for context in contexts], settings) if settings.temperature > 0 else None
        for numbers in batches(contexts, settings.batch, settings.exact):
            some = [contexts[number] for number in numbers]
            writers = [
                _Writer(self.tokenizer, context, settings, ends, number, limits[number])
                for number, context in zip(numbers, some, strict=True)
            ]
            if settings.beams > 1:
                yield from self._search(some, writers, settings, ends)
                continue
            steps = decode(
                self._model,
                some,
                settings.within(max(writer.limit for writer in writers)),
                lambda row, token, writers=writers: writers[row].take(token),  # type: ignore[misc]
                None if draws is None else draws[numbers],
                Rules.of(settings, some, ends, [writer.limit for writer in writers]),
            )
            for _ in steps:
                for writer in writers:
                    yield from writer.pieces()

    def room(self, prompt: str) -> int:
        """New tokens for which the model's context has room after a prompt; 0 or less where it is too long itself."""
        return room_for(self._contexts([prompt])[0], self.config)

    def _search(
        self, contexts: Sequence[Context], writers: Sequence[_Writer], settings: Settings, ends: Sequence[int]
    ) -> Iterator[Piece]:
        stopped = None
        if settings.stop:

            def stopped(number: int, tokens: list[int]) -> bool:
                return writers[number].would_stop(tokens)

        limits = [writer.limit for writer in writers]
        best = beam_search(self._model, contexts, settings, ends, stopped, limits)
        for writer, found in zip(writers, best, strict=True):
            for token in found.tokens if found.end is None else [*found.tokens, found.end]:
                writer.take(token)
            # A search that has found nothing, as under extreme length penalties, gives no token.
            writer.close("length")
            pieces = list(writer.pieces())
            yield replace(pieces[-1], text="".join(piece.text for piece in pieces))

    def _contexts(self, prompts: Sequence[str]) -> list[Context]:
        return contexts_of(prompts, self.tokenizer, self.config, self.reading, raw=self.raw)


class _Writer:
    """Collects what follows one prompt, up to `limit` tokens."""

    def __init__(
        self, tokenizer: Tokenizer, context: Context, settings: Settings, ends: Sequence[int], number: int, limit: int
    ) -> None:
        self.limit = limit
        # What follows a special token, such as the end of a source, is a text of its own.
        special = set(tokenizer.special.values())
        first = max((place + 1 for place, token in enumerate(context.tokens) if token in special), default=0)
        before = context.tokens[first:]
        self._fresh = lambda: Text(tokenizer, before, settings.stop)
        self._text = self._fresh()
        self._own_ends = set(stop_tokens(tokenizer))
        self._ends = set(ends)
        self._number = number
        self._pieces: list[Piece] = []
        self._closed = False

    def take(self, token: int) -> bool:
        """Take the next token; whether it ends the text."""
        if token in self._ends:
            self.close("end" if token in self._own_ends else "stop")
            return True
        text = self._text.add(token)
        if text:
            self._pieces.append(Piece(self._number, text))
        full = len(self._text.tokens) == self.limit
        if self._text.stopped or full:
            self.close("length")
        return self._text.stopped or full

    def close(self, finish: Finish) -> None:
        """Nothing more comes, if that is not known yet."""
        if self._closed:
            return
        self._closed = True
        rest = self._text.finish()
        if self._text.stopped:
            finish = "stop"
        completion = Completion(self._text.text, self._text.tokens, finish)
        self._pieces.append(Piece(self._number, rest, completion))

    def pieces(self) -> list[Piece]:
        """What has come since the last call."""
        found, self._pieces = self._pieces, []
        return found

    def would_stop(self, tokens: Sequence[int]) -> bool:
        """Whether a stop text is in what the tokens say, from the first one on."""
        text = self._fresh()
        text.tokens = list(tokens[:-1])
        text.add(tokens[-1])
        return text.stopped
