"""Special tokens around a text, by the conventions of the model it is for: in a stream of documents, of a source, of a
prompt; and those that begin, pad and end what a model writes."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.tokenizer.base import Tokenizer
from data_pipeline.tokenizer.conventions import Conventions


def conventions_of(tokenizer: Tokenizer) -> Conventions | None:
    """Those of the model that a tokenizer was imported with; None: this project's own."""
    return getattr(tokenizer, "conventions", None)


class Frame(NamedTuple):
    """The special tokens of the documents in a stream."""

    lead: tuple[int, ...]
    """In front of the very first document, so that its first token has one to be predicted from."""
    begin: tuple[int, ...]
    """In front of each document; never predicted."""
    end: tuple[int, ...]
    """Behind each document; predicted."""

    @property
    def key(self) -> str:
        """What it adds to the digest of tokenised documents: "" where each is a text and its end-of-document token, as
        in runs from scratch."""
        return "" if not self.begin and len(self.end) == 1 else f"{self.begin} {self.end}"


def plain_frame(tokenizer: Tokenizer) -> Frame:
    """That of a model trained from scratch, and of all encoders: eos, text, eos, text, eos, ..."""
    eos = (tokenizer.special["eos"],)
    return Frame(eos, (), eos)


def document_frame(tokenizer: Tokenizer) -> Frame:
    """How a decoder reads documents one after the other. What stands in front of a text by its own convention stands in
    front of each document; where that is the token that ends the one before, or nothing, one token is between them."""
    plain, kept = plain_frame(tokenizer), conventions_of(tokenizer)
    if kept is None or kept.begin is None or kept.start is not None or kept.begin == plain.end:
        return plain
    return Frame((), kept.begin, kept.end or plain.end)


def text_frame(tokenizer: Tokenizer, *, source: bool) -> tuple[list[int], list[int]]:
    """Tokens in front of and behind a text that the model is given.

    Args:
        source: another text follows from it; else the model continues it.
    """
    kept, eos = conventions_of(tokenizer), tokenizer.special["eos"]
    if kept is None or kept.begin is None:
        return ([], [eos]) if source else ([eos], [])
    end = list(kept.end)
    return list(kept.begin), end or [eos] if source else end


def whole_frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens in front of and behind a text that is read as a whole: `[CLS]` and `[SEP]` where the tokenizer has them,
    as encoders are pretrained; else as a source."""
    special = tokenizer.special
    if "cls" in special and "sep" in special:
        return [special["cls"]], [special["sep"]]
    return text_frame(tokenizer, source=True)


class PairFrame(NamedTuple):
    """The special tokens of a text, or of two that are read as one, of which an encoder predicts."""

    begin: list[int]
    """In front of the first."""
    between: list[int]
    """Behind the first where there is a second."""
    end: list[int]
    """Behind the last."""


def pair_frame(tokenizer: Tokenizer, *, cls: bool) -> PairFrame:
    """`[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`, where an imported model may have more between them; or what stands
    around sources. What was imported with a head reads as its tokenizer has it.

    Args:
        cls: the former.
    """
    kept = conventions_of(tokenizer)
    if kept is not None and kept.head is not None:
        return PairFrame(*map(list, kept.head))
    if not cls:
        begin, end = text_frame(tokenizer, source=True)
        return PairFrame(begin, end, end)
    end = [tokenizer.special["sep"]]
    between = list(kept.between) if kept is not None else []
    return PairFrame([tokenizer.special["cls"]], between or end, end)


def start_token(tokenizer: Tokenizer) -> int:
    """The token that the decoder of an encoder-decoder starts from.

    Raises:
        KeyError: neither conventions nor a pad token say which.
    """
    kept = conventions_of(tokenizer)
    return tokenizer.special["pad"] if kept is None or kept.start is None else kept.start


def pad_token(tokenizer: Tokenizer) -> int:
    """The padding token, which is nowhere predicted or looked at."""
    return tokenizer.special.get("pad", tokenizer.special["eos"])


def stop_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens each of which ends a text that the model writes, the likeliest first."""
    kept, end = conventions_of(tokenizer), turn_end(tokenizer)
    stops = (kept.stop if kept is not None else ()) or (tokenizer.special["eos"],)
    return stops if end is None or end in stops else (end, *stops)


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The token that ends the assistant's turns, where the model has been trained on dialogues."""
    chat = getattr(tokenizer, "chat", None)
    return None if chat is None or chat.end is None else tokenizer.spellings().get(chat.end)
