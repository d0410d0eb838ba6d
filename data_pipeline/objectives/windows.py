"""Windows of the packed stream, each token predicted from those before it: what objectives of decoders share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.objectives.objective import Arrays, Objective, filled, stack
from data_pipeline.objectives.packing import OpenPacker, WindowPacker
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import Frame, document_frame


class Windows(Objective):
    """Windows of sequence_length + 1 tokens that overlap by one: every token is a target exactly once."""

    unit = "window"
    overlap = 1
    frame: Frame

    def __init__(self, tokenizer: Tokenizer, sequence_length: int) -> None:
        self.length = sequence_length + 1
        self.frame = document_frame(tokenizer)
        self._begin = np.array(self.frame.begin, dtype=np.int32)

    @property
    def targets_per_sample(self) -> int:
        return self.length - 1

    def packer(self) -> OpenPacker:
        lead = bool(self.frame.lead)
        return lambda documents, token, _: WindowPacker(documents, token, self.length, self.overlap, lead)

    def rows(self, tokens: Sequence[np.ndarray]) -> Arrays:
        """`tokens`, and `weights` where a row is too short, or holds the beginning of a document, which nothing in
        front of it foretells."""
        full = all(len(row) == self.length for row in tokens)
        arrays: Arrays = {"tokens": np.stack(tokens) if full else stack(tokens, self.length)}
        if not full or len(self._begin):
            arrays["weights"] = filled([row[:-1] for row in tokens], self.length - 1)
        if len(self._begin):
            arrays["weights"][np.isin(arrays["tokens"][:, 1:], self._begin)] = 0
        return arrays
