"""What a model that was trained elsewhere expects around a text, and how its texts end: its own special tokens, which
may be others than those that a run of ours puts there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from data_pipeline.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Conventions:
    """The conventions of an imported model. They are kept beside its tokenizer and go wherever that goes; a tokenizer
    without them belongs to a model that this project trained from scratch."""

    begin: tuple[int, ...] | None = None
    """Tokens in front of a text, such as Llama's `<s>`; None: as this project has it."""
    end: tuple[int, ...] = ()
    """Tokens behind a text that the model is given, such as T5's `</s>`; of no use where `begin` is None."""
    start: int | None = None
    """The token that the decoder of an encoder-decoder starts from; None: pad."""
    stop: tuple[int, ...] = ()
    """Tokens each of which ends a text that the model writes; none: the end-of-document token alone."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was read, or what config.json says of generation."""
    config: dict[str, Any] = field(default_factory=dict)
    """What config.json says of special tokens and of generation, as it was read."""

    def as_json(self) -> dict[str, Any]:
        """What `read` reads."""
        return asdict(self)

    @classmethod
    def read(cls, kept: Mapping[str, Any] | None) -> Conventions | None:
        """What `as_json` gave.

        Raises:
            TypeError, KeyError: it gave something else.
        """
        if kept is None:
            return None
        begin, start = kept["begin"], kept["start"]
        if not isinstance(kept["generation"], dict) or not isinstance(kept["config"], dict):
            raise TypeError("generation and config are objects")
        return cls(
            begin=None if begin is None else tuple(map(index, begin)),
            end=tuple(map(index, kept["end"])),
            start=None if start is None else index(start),
            stop=tuple(map(index, kept["stop"])),
            generation=kept["generation"],
            config=kept["config"],
        )


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


def start_token(tokenizer: Tokenizer) -> int:
    """The token that the decoder of an encoder-decoder starts from.

    Raises:
        KeyError: neither conventions nor a pad token say which.
    """
    kept = conventions_of(tokenizer)
    return tokenizer.special["pad"] if kept is None or kept.start is None else kept.start


def pad_token(tokenizer: Tokenizer) -> int:
    """The token that fills up what is shorter than the rest, and is nowhere predicted or looked at."""
    return tokenizer.special.get("pad", tokenizer.special["eos"])


def stop_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens each of which ends a text that the model writes, the likeliest first."""
    kept = conventions_of(tokenizer)
    return (kept.stop if kept is not None else ()) or (tokenizer.special["eos"],)
