"""Contrastive learning of embeddings: a query, the text that belongs to it, and texts that do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import xxhash
from pydantic import Field

from data_pipeline.objectives.by_document import ByDocument
from data_pipeline.objectives.objective import LABELS, Arrays, ObjectiveSettings, filled, stack
from data_pipeline.objectives.packing import Sample, Stored, value_of
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import whole_frame

NAME = "contrastive"
"""Of the objective and of its head."""


class ContrastiveObjective(ObjectiveSettings):
    """Vectors of texts: that of a query is to be nearer to that of its positive than to those of all other samples of
    the global batch (InfoNCE; van den Oord et al. 2018, equation 4). The text of a source is the query and its
    `target_field` the positive. Texts that are too long are cut at their end."""

    name: Literal["contrastive"] = "contrastive"
    """Vectors of texts."""
    positives: Literal["target", "dropout"] = "target"
    """target: the second text of a pair; dropout: the query itself, read once more with other values dropped (SimCSE;
    Gao et al. 2021, section 3), for texts without pairs."""
    negatives: Annotated[int, Field(ge=0, le=64)] = 0
    """Hard negatives of each query, beside the positives of the others: sources name the field of that text, or of the
    list of them, as `fields: {negatives: NAME}`."""
    pooling: Literal["first", "last", "mean"] = "mean"
    """Whose hidden state is the vector: first: that of `[CLS]`, for encoders; last: that of the last token, for
    decoders; mean: the mean over the tokens."""
    normalize: bool = True
    """Vectors of length 1, so that products of them are cosines."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """What similarities are divided by."""
    symmetric: bool = False
    """The mean with the loss the other way around, of a positive among all queries (CLIP; Radford et al. 2021)."""

    @property
    def least_length(self) -> int:
        return 3

    @property
    def stored(self) -> Stored:
        return Stored(target=self.positives == "target", values=("negatives",) if self.negatives else ())

    def roles(self, sequence_length: int) -> tuple[str, ...]:
        return ("cls", "sep", "pad") if self.pooling == "first" else ("pad",)

    def head(self, architecture: str, transform: bool = False) -> dict[str, Any]:
        return {
            "name": NAME,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "temperature": self.temperature,
            "symmetric": self.symmetric,
        }

    def build(self, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Contrastive:
        return Contrastive(self, tokenizer, sequence_length)


class Contrastive(ByDocument):
    """Each query is one sample, with its positive and its hard negatives: R texts, one after the other in a row."""

    config: ContrastiveObjective

    def __init__(self, config: ContrastiveObjective, tokenizer: Tokenizer, sequence_length: int) -> None:
        super().__init__(config, tokenizer, sequence_length)
        self._begin, self._end = (np.array(ids, dtype=np.int32) for ids in whole_frame(tokenizer))

    def arrays(self, samples: Sequence[Sample], numbers: Sequence[int]) -> Arrays:
        """`inputs` and `encoder_weights` are (C, R * T); `labels.contrastive` (C, R) are equal where texts are."""
        texts = [text for sample in samples for text in self._texts(sample)]
        count = len(samples)
        return {
            "inputs": stack(texts, self.sequence_length, self.pad).reshape(count, -1),
            "targets": np.zeros((count, 1), dtype=np.int8),
            "weights": np.ones((count, 1), dtype=np.float32),
            "encoder_weights": filled(texts, self.sequence_length).reshape(count, -1),
            f"{LABELS}{NAME}": np.array([_key(text) for text in texts], dtype=np.int64).reshape(count, -1),
        }

    def problem(self, values: Mapping[str, Any]) -> str | None:
        try:
            self._negatives(values.get("negatives"))
        except ValueError as error:
            return str(error)
        return None

    def _texts(self, sample: Sample) -> list[np.ndarray]:
        """The tokens of a sample's query, of its positive, and of its negatives."""
        pair = self.config.positives == "target"
        query = sample.tokens[: sample.split] if pair else sample.tokens
        texts = [query, sample.tokens[sample.split :] if pair else query]
        if self.config.negatives:
            hard = self._negatives(value_of(sample.values[0]))
            texts += [np.array(self.tokenizer.encode(text), dtype=np.int32) for text in hard]
        room = max(0, self.sequence_length - len(self._begin) - len(self._end))
        return [np.concatenate([self._begin, text[:room], self._end]) for text in texts]

    def _negatives(self, value: Any) -> list[str]:
        """A record's hard negatives.

        Raises:
            ValueError: they are no texts, or fewer than `negatives`; says why, and what to do.
        """
        wanted, texts = self.config.negatives, [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            shown = json.dumps(value, ensure_ascii=False, default=str)
            raise ValueError(
                f"the negatives are {shown:.60}, but must be a text or a list of texts; correct the record"
            )
        if len(texts) < wanted:
            raise ValueError(
                f"the record has {len(texts)} negative{'s' * (len(texts) != 1)}, but objective.negatives is {wanted};"
                f" give it more, or lower objective.negatives"
            )
        return texts[:wanted]


def _key(text: np.ndarray) -> int:
    """At least 0, and the same for the same tokens."""
    return xxhash.xxh64_intdigest(text.astype("<i4", copy=False).tobytes()) >> 1
