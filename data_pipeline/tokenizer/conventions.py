"""What a model that was trained elsewhere expects around a text, and how its texts end: its own special tokens, which
may be others than those that a run of ours puts there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import index
from typing import Any


@dataclass(frozen=True)
class Conventions:
    """The conventions of an imported model. They are kept beside its tokenizer and go wherever that goes; a tokenizer
    without them belongs to a model that this project trained from scratch."""

    begin: tuple[int, ...] | None = None
    """Tokens in front of a text, such as Llama's `<s>`; None: as this project has it."""
    end: tuple[int, ...] = ()
    """Tokens behind a text that the model is given, such as T5's `</s>`; of no use where `begin` is None."""
    between: tuple[int, ...] = ()
    """Tokens between two texts that are read as one, such as RoBERTa's `</s></s>`; none: what ends the first."""
    head: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None
    """Of a model that was imported with a head for texts: tokens in front of a text, between two, and behind the last,
    as its tokenizer has them; None: as the others say."""
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
            between=tuple(map(index, kept.get("between", ()))),  # which earlier versions did not keep
            head=None if kept.get("head") is None else _three(kept["head"]),  # neither that
            start=None if start is None else index(start),
            stop=tuple(map(index, kept["stop"])),
            generation=kept["generation"],
            config=kept["config"],
        )


def _three(kept: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    begin, between, end = (tuple(map(index, ids)) for ids in kept)
    return begin, between, end
