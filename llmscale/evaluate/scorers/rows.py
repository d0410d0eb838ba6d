"""What a model is given to score: rows of tokens, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from data_pipeline.reading.reader import ReadAnswer

Place = tuple[int, int]
"""Number of a row of a request, and number of a target of that row."""


@dataclass(frozen=True)
class Row:
    """One sequence of a forward pass."""

    inputs: tuple[int, ...]
    """What the decoder (or an encoder-only model) reads."""
    targets: tuple[tuple[int, int], ...]
    """Position in the inputs and token whose probability is asked for there."""
    source: tuple[int, ...] | None = None
    """What the encoder of an encoder-decoder reads."""
    positions: tuple[int, ...] | None = None
    """Of each input, where they are not 0, 1, 2, ..."""
    branches: tuple[int, ...] | None = None
    """Number of the answer that each input is part of, from 1; 0 for the inputs that all answers share."""
    shared: int = 0
    """How many inputs from the start all answers share."""
    prefix: int = 0
    """How many inputs from the start all see each other."""

    @property
    def reads(self) -> tuple[object, ...]:
        """What the model reads, whatever is asked."""
        return self.inputs, self.source, self.positions, self.branches, self.shared, self.prefix

    def asked(self, more: tuple[tuple[int, int], ...]) -> Row:
        """The same row, asked for more targets behind its own."""
        return replace(self, targets=self.targets + more)


@dataclass
class Request:
    """All that is asked of a model about one item."""

    rows: list[Row] = field(default_factory=list)
    answers: list[tuple[ReadAnswer, list[Place]]] = field(default_factory=list)
    """Each answer of the item, and where the scores of its tokens are found."""
    neutral: list[list[Place]] = field(default_factory=list)
    """Where the scores of each answer after the neutral context are found."""
    flags: list[str] = field(default_factory=list)

    def add(self, row: Row) -> list[Place]:
        """Ask for a row, and say where the scores of its targets will be found. Rows that read the same are one."""
        for number, other in enumerate(self.rows):
            if other.reads == row.reads:
                first = len(other.targets)
                self.rows[number] = other.asked(row.targets)
                return [(number, first + target) for target in range(len(row.targets))]
        self.rows.append(row)
        return [(len(self.rows) - 1, target) for target in range(len(row.targets))]

    def extend(self, rows: Iterable[Row]) -> list[Place]:
        """`add` of several."""
        return [place for row in rows for place in self.add(row)]
