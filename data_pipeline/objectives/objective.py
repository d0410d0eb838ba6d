"""What every objective does: cut documents into samples, and turn samples into the arrays of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from data_pipeline.base.errors import UserError
from data_pipeline.base.section import Section
from data_pipeline.config import SourceConfig
from data_pipeline.document import Document
from data_pipeline.objectives.packing import OpenPacker, Origins, Sample, Stored
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import Frame, PairFrame, start_token

Share = Annotated[float, Field(ge=0, le=1)]
LABELS = "labels."
"""What the name of an array of labels begins with; its rest is the name in `Batch.labels`."""

Arrays = dict[str, np.ndarray]
"""Rows of a `Batch` by field name, in integer or float types as small as they may be. `tokens` (C, T + 1) stands for
`inputs` and `targets`, which are its first and last T columns; without `weights` every target counts. `labels.NAME`
stands for `Batch.labels[NAME]`."""


class ObjectiveSettings(Section, ABC):
    """The settings of an objective, which make its data side; `llmscale.objectives` has the model's side."""

    name: str
    """The objective."""
    later: ClassVar[tuple[str, ...]] = ()
    """Settings that came after runs had been made: with their defaults, such runs go on."""
    decides: ClassVar[tuple[str, ...]] = ()
    """Settings that the model section has by the same names, and takes from here before its family's preset."""
    reads_dialogues: ClassVar[bool] = False
    """Whether the tokenizer needs a chat template; it gets one where it has none."""
    fills_gaps: ClassVar[bool] = False
    """Whether models learn to write what a sentinel stands for."""
    answers: ClassVar[Literal["source", "dialogue"] | None] = None
    """What models learn to write an answer to: the source of a pair, or a dialogue up to its last turn."""

    @property
    def least_length(self) -> int:
        """Fewest tokens of a sample: the objective's own and some text."""
        return 1

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        """Tokens that the tokenizer must have, by role, besides eos; `prepare_tokenizer` adds what is missing."""
        return ()

    @abstractmethod
    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Objective:
        """The objective over a tokenizer that has the `roles`."""

    @property
    def stored(self) -> Stored:
        """What is kept of a document besides its text."""
        return Stored()

    @property
    def answer_length(self) -> int | None:
        """Most tokens of an answer; None: it has no limit of its own."""
        return None

    def head(self, architecture: str, transform: bool = False) -> dict[str, Any] | None:
        """The `model.head` that a model of this architecture needs; None: that of a language model.

        Args:
            transform: of the head that the class of the model's family has.
        """
        return None

    def around(self, tokenizer: Tokenizer) -> PairFrame | None:
        """The special tokens around a text, or two, of which a head predicts; None: a language model reads it."""
        return None

    def evaluated(self) -> ObjectiveSettings:
        """The objective by which held-out documents are read: without what only training is to be varied by."""
        return self


class Objective(ABC):
    """How documents become samples, and samples k become rows: a pure function of (sample, seed, k)."""

    config: ObjectiveSettings
    unit: Literal["window", "sentences", "document"]
    """What a sample is cut from: the packed stream, one or two documents, or a document with all that is stored of
    it."""
    length: int
    """Tokens of a sample: exactly for windows, at most for sentences; 0 where it is as long as it is."""
    overlap: int = 0
    """Tokens that a window shares with the next one."""
    short_rate: float = 0.0
    """How often a pair of sentences is made shorter than it could be."""
    eos: int | None = None
    """The token behind every document that is tokenised ahead; of no use to windows, of which it is a part."""
    frame: Frame | None = None
    """The special tokens of documents in the stream; None: a token ends each, as in a run from scratch."""
    plain: bool = False
    """Whether a row is nothing but its window."""
    room: int = 0
    """For unit `document`: positions of a row that documents share as far as they fit; 0: each has its own."""
    closed_labels: bool = False
    """Whether each sample has some of a set of labels that the model learns one by one."""
    form: str = ""
    """All that decides what is stored of a document besides itself and the tokenizer, beyond its plain text."""

    @abstractmethod
    def packer(self) -> OpenPacker:
        """Cuts a lane's documents into samples."""

    def sample(self, text: np.ndarray, others: Sequence[np.ndarray], origins: Origins) -> Sample:
        """For unit `document`: the sample of the text's tokens and the other arrays that are stored of the document."""
        texts, values = others[: int(self.config.stored.target)], tuple(others[int(self.config.stored.target) :])
        tokens = np.concatenate([text, *texts])
        return Sample(tokens, origins(len(tokens)), len(text), values=values)

    def problem(self, values: Mapping[str, Any]) -> str | None:
        """What is wrong with the values of a document's other fields, as a clause with the fix; None: nothing."""
        return None

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """(N,) positions that documents take in a row with `room`, of the (N, arrays) lengths of what is stored."""
        raise NotImplementedError(f"objective {self.config.name} gives each document a row of its own")

    def target_tokens(self, arrays: Sequence[np.ndarray]) -> float | None:
        """How much there is to predict of a document that is stored as `arrays`; None: all of its (second) text."""
        return None

    def is_cut(self, sample: Sample) -> bool:
        """Whether the sample does not fit its row, so that some of its text is left out there."""
        return False

    def marked(self, labels: Mapping[str, np.ndarray], size: int) -> np.ndarray | None:
        """(size,) what is learned of the tokens of a row, where its weights do not say: of the targets, or of the
        inputs where one target stands for all of them. None: they say it.

        Args:
            labels: of that row, by name.
        """
        return None

    def classes(self, sample: Sample) -> list[str]:
        """Which of `closed_labels` a sample has."""
        return []

    def turns(self, sample: Sample) -> list[str]:
        """What people are told of a sample besides its tokens, a word or two each."""
        return []

    def checked(
        self, documents: Iterable[Document], place: Callable[[Document], str], counts: Counter[str] | None = None
    ) -> Iterator[Document]:
        """The documents, whose values are looked at.

        Args:
            place: says where one stands.
            counts: gets how often documents are left out or cut, by reason.

        Raises:
            UserError: a value is wrong; names its place.
        """
        if not self.config.stored.values:
            yield from documents
            return
        for document in documents:
            problem = self.problem(document.values or {})
            if problem is not None:
                raise UserError(f"{place(document)}: {problem}")
            yield document

    @property
    def given(self) -> tuple[str, ...]:
        """Values of a record's other fields that sources must have."""
        return self.config.stored.fields

    def require(self, sources: Sequence[SourceConfig], where: str) -> None:
        """Raise UserError unless every source, which the config has at `where`, says where to find what is stored."""
        for index, source in enumerate(sources):
            if self.config.stored.target and "target" not in source.gives and not source.about.is_tokenised:
                raise UserError(
                    f"objective.name is {self.config.name}, but {where}.{index} has no target_field; name the field"
                    f" that holds the target text"
                )
            missing = [name for name in self.given if name not in source.gives]
            if missing and source.about.is_tokenised:
                raise UserError(
                    f"objective.name is {self.config.name}, but {where}.{index} has kind tokens, which hold no"
                    f" {missing[0]}; name the files that the tokens are from"
                )
            if missing:
                raise UserError(
                    f"objective.name is {self.config.name}, but {where}.{index} does not say which field holds the"
                    f" {missing[0]}; set its fields to {{{missing[0]}: NAME}}"
                )

    @abstractmethod
    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        """The rows of samples with global numbers `numbers`. A window shorter than `length` is padded."""

    @property
    @abstractmethod
    def targets_per_sample(self) -> int:
        """Most target tokens of a sample."""


def stack(rows: Sequence[np.ndarray], length: int, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
    """Rows of at most `length` elements as one (C, length) array, padded at the end."""
    out: np.ndarray = np.full((len(rows), length), fill, dtype=dtype)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out


def decoder_inputs(targets: np.ndarray, start: int) -> np.ndarray:
    """What a decoder reads to give (C, T) targets: the token `start`, then each target but the last."""
    return np.concatenate([np.full((len(targets), 1), start, targets.dtype), targets[:, :-1]], axis=1)


def read_twice(inputs: np.ndarray, tokenizer: Tokenizer) -> Arrays:
    """What both stacks of an encoder-decoder read of (C, T) texts, where the decoder reads them as the encoder does."""
    return {"encoder_inputs": inputs, "inputs": decoder_inputs(inputs, start_token(tokenizer))}


def filled(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """(C, length) float32: 1 where a row has elements, 0 for padding."""
    sizes = np.array([len(row) for row in rows])
    return (np.arange(length) < sizes[:, None]).astype(np.float32)
