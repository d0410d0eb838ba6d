"""Texts between special tokens of which an objective makes its own samples: what those of token heads share."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data_pipeline.base.errors import UserError
from data_pipeline.document import Document
from data_pipeline.objectives.by_document import ByDocument
from data_pipeline.objectives.objective import ObjectiveSettings
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import PairFrame, conventions_of, pair_frame

AROUND: dict[str, Literal["cls", "eos", "decoder"]] = {"encoder": "cls", "decoder": "eos", "encoder_decoder": "decoder"}
"""`special_tokens` by `model.architecture`."""


class FramedSettings(ObjectiveSettings):
    """The settings that they share."""

    special_tokens: Literal["cls", "eos", "decoder"] = "cls"
    """What is around texts. cls: `[CLS]` and `[SEP]`, for encoders (BERT); eos: what a decoder has behind a text
    (GPT-2); decoder: the same for encoder-decoders, whose decoder reads the text once more and predicts (T5)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the hidden states' values dropped before the projection in training."""
    transform: bool | None = None
    """A dense layer, the model's activation and its norm before the projection; as the class of the model's family has
    it where not given (ModernBERT's has)."""

    def form_of_head(self, transform: bool) -> dict[str, Any]:
        """What `model.head` has before the projection; `transform`: where the objective does not say."""
        return {"dropout": self.dropout, "transform": transform if self.transform is None else self.transform}

    def around(self, tokenizer: Tokenizer) -> PairFrame:
        return pair_frame(tokenizer, cls=self.special_tokens == "cls")

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ("cls", "sep", "pad") if self.special_tokens == "cls" else ("pad",)


class Framed(ByDocument):
    """Samples with tokens in front of the first text, and behind each."""

    config: FramedSettings

    def __init__(self, config: FramedSettings, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        frame = config.around(tokenizer)
        self.begin, self.between, self.end = (np.array(ids, dtype=np.int32) for ids in frame)
        decides = [config.model_dump(exclude={"dropout", "transform"}), sequence_length]
        decides += [frame.between] if frame.between != frame.end else []
        kept = conventions_of(tokenizer)
        decides += [frame.begin, frame.end] if kept is not None and kept.head is not None else []
        self.form = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def checked(
        self, documents: Iterable[Document], place: Callable[[Document], str], counts: Counter[str] | None = None
    ) -> Iterator[Document]:
        for document in documents:
            try:
                yield from self.examples(document, Counter() if counts is None else counts)
            except ValueError as error:
                raise UserError(f"{place(document)}: {error}") from None

    @abstractmethod
    def examples(self, document: Document, counts: Counter[str]) -> list[Document]:
        """A document as it is stored, for each sample.

        Args:
            counts: gets what is to be told of documents, by reason.

        Raises:
            ValueError: the document is wrong; says why, and what to do.
        """
