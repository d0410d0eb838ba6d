"""A context and an answer as the model was trained to read them: token ids, and the bytes that each stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_pipeline.base.encodings import is_unicode
from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer, frame

Architecture = Literal["decoder", "encoder", "encoder_decoder"]
Form = Literal["document", "prefix", "source"]
"""What a decoder takes a context for. document: the beginning of a document; prefix: the same, its tokens all seeing
each other; source: a text whose end is followed by another. An encoder-decoder always reads a source."""


@dataclass(frozen=True)
class ReadAnswer:
    """An answer after its context, as token ids."""

    before: tuple[int, ...]
    """What a decoder reads before the answer's first token (at least one token), or an encoder left of the answer."""
    tokens: tuple[int, ...]
    """The answer; of tokens that have bytes of both, those that begin in the context too."""
    spans: tuple[tuple[int, int], ...]
    """The bytes of the answer that each of its tokens stands for, [start, end); below 0 in the context."""
    text: str
    """The answer."""
    after: tuple[int, ...] = ()
    """What an encoder reads right of the answer."""
    source: tuple[int, ...] | None = None
    """What the encoder of an encoder-decoder reads."""
    begin: int = 0
    """How many tokens of `before` stand in front of every text, whatever it is."""


class Reader:
    """Reads texts for one model. All who give texts to the model read them here, so that training, scores and
    generation agree about special tokens and about where an answer begins."""

    def __init__(self, tokenizer: Tokenizer, architecture: Architecture, form: Form = "document") -> None:
        """
        Args:
            tokenizer: with the conventions of an imported model, where it is one.
            form: how a decoder reads a context.
        """
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.form: Form = form

    @property
    def digest(self) -> str:
        """Of all that decides what a text becomes."""
        around = [frame.text_frame(self.tokenizer, source=source) for source in (False, True)]
        return f"{self.tokenizer.digest[:32]} {self.architecture} {self.form} {around}"

    def answer(self, context: str, answer: str) -> ReadAnswer:
        """Read an answer after a context.

        A decoder's or an encoder's context and answer are one text, read at once. The border between them is a place
        in its bytes; a token on both sides of it belongs to the answer, which a model could not begin otherwise.

        Raises:
            UserError: the answer becomes no token, or one of the texts is no Unicode.
        """
        for text in (context, answer):
            _require_unicode(text)
        if self.architecture == "encoder_decoder" or (self.architecture == "decoder" and self.form == "source"):
            read = self._after_source(context, answer)
        else:
            read = self._in_one_text(context, answer)
        _require_tokens(read)
        return read

    def documents(self, texts: Sequence[str], separator: str | None = None) -> list[ReadAnswer]:
        """Read texts that follow each other, for a decoder.

        Args:
            separator: text between them; they and it are one text, read at once. None: they follow each other as they
                do in training, each with the tokens that a document ends with.

        Returns:
            Of each text the tokens that it adds. Those of the separator, or of the document's end, belong to the text
            that they end; `before` are those in front of it, which are never predicted.

        Raises:
            UserError: as `answer`.
        """
        for text in texts:
            _require_unicode(text)
        reads = self._framed(texts) if separator is None else self._separated(texts, separator)
        for read in reads:
            _require_tokens(read)
        return reads

    @property
    def _first(self) -> tuple[int, ...]:
        """What a text is predicted from where neither a context nor a special token stands in front of it."""
        special = self.tokenizer.special
        return (special.get("bos", special["eos"]),)

    def _framed(self, texts: Sequence[str]) -> list[ReadAnswer]:
        around = frame.document_frame(self.tokenizer)
        reads = []
        for number, text in enumerate(texts):
            ids, spans = self.tokenizer.encode_with_spans(text)
            size = len(text.encode())
            before = around.begin if number else (*around.lead, *around.begin) or self._first
            tokens = (*ids.tolist(), *around.end) if len(ids) else ()
            found = (*((int(start), int(end)) for start, end in spans), *[(size, size)] * len(around.end))
            reads.append(ReadAnswer(before=before, tokens=tokens, spans=found, text=text))
        return reads

    def _separated(self, texts: Sequence[str], separator: str) -> list[ReadAnswer]:
        ids, spans = self.tokenizer.encode_with_spans(separator.join(texts))
        sizes = [len(text.encode()) for text in texts]
        starts = np.cumsum([0, *sizes]) + len(separator.encode()) * np.arange(len(texts) + 1)
        # As in `_in_one_text`: a token on both sides of a border belongs to what comes behind it.
        firsts = [int(np.argmax(spans[:, 1] > start)) if number else 0 for number, start in enumerate(starts[:-1])]
        begin, _ = frame.text_frame(self.tokenizer, source=False)
        before = tuple(begin) or self._first
        reads = []
        for number, text in enumerate(texts):
            own = slice(firsts[number], firsts[number + 1] if number + 1 < len(texts) else len(ids))
            found = np.minimum(spans[own] - starts[number], sizes[number])
            reads.append(
                ReadAnswer(
                    before=() if number else before,
                    tokens=tuple(ids[own].tolist()),
                    spans=tuple((int(start), int(end)) for start, end in found),
                    text=text,
                )
            )
        return reads

    def words(self, read: ReadAnswer) -> np.ndarray:
        """(T,) the number of the word, from 0, that each token of an answer is part of."""
        starts = self.tokenizer.begin_words(np.array([*read.before, *read.tokens], dtype=np.int32))[len(read.before) :]
        starts[0] = True
        return np.cumsum(starts) - 1

    def _in_one_text(self, context: str, answer: str) -> ReadAnswer:
        ids, spans = self.tokenizer.encode_with_spans(context + answer)
        border = len(context.encode())
        # A token of no byte, such as a space that only the tokenizer sees, goes with those that follow it.
        inside = spans[:, 1] > border if border else np.ones(len(ids), dtype=bool)
        first = int(np.argmax(inside)) if inside.any() else len(ids)
        tokens = ids[first:].tolist()
        around: dict[str, tuple[int, ...]] = {}
        if self.architecture == "encoder":
            special = self.tokenizer.special
            begin, around["after"] = [special["cls"]], (special["sep"],)
        else:
            begin, _ = frame.text_frame(self.tokenizer, source=False)
            if not begin and not first:
                begin = list(self._first)
        return ReadAnswer(
            before=(*begin, *ids[:first].tolist()),
            tokens=tuple(tokens),
            spans=tuple((int(start), int(end)) for start, end in spans[first:] - border),
            text=answer,
            begin=len(begin),
            **around,
        )

    def _after_source(self, context: str, answer: str) -> ReadAnswer:
        begin, end = frame.text_frame(self.tokenizer, source=True)
        source = (*begin, *self.tokenizer.encode(context), *end)
        ids, spans = self.tokenizer.encode_with_spans(answer)
        read = {"tokens": tuple(ids.tolist()), "spans": tuple((int(start), int(stop)) for start, stop in spans)}
        if self.architecture == "decoder":
            return ReadAnswer(before=source, text=answer, begin=len(begin), **read)  # type: ignore[arg-type]
        start = frame.start_token(self.tokenizer)
        return ReadAnswer(before=(start,), text=answer, source=source, begin=1, **read)  # type: ignore[arg-type]


def _require_unicode(text: str) -> None:
    if not is_unicode(text):
        raise UserError(f"{text[:40]!a} has bytes that are not UTF-8; write it in UTF-8")


def _require_tokens(read: ReadAnswer) -> None:
    if not read.tokens:
        raise UserError(f"the answer {read.text[:40]!r} becomes no token; give one that the tokenizer does not drop")
