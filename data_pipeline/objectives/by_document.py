"""Documents that are a sample each: what objectives share that take them so."""

from __future__ import annotations

from typing import Any

from data_pipeline.objectives.objective import Objective
from data_pipeline.objectives.packing import DocumentPacker, OpenPacker
from data_pipeline.objectives.rows import RowPacker
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import pad_token


class ByDocument(Objective):
    """Each document is a sample; where the objective has `room`, as many as fit share a row."""

    config: Any
    eos: int
    unit = "document"
    length = 0

    def __init__(self, config: Any, tokenizer: Tokenizer, sequence_length: int) -> None:
        self.config = config
        self.sequence_length = sequence_length
        self.eos = tokenizer.special["eos"]
        self.tokenizer = tokenizer
        self.pad = pad_token(tokenizer)

    @property
    def targets_per_sample(self) -> int:
        return 1

    def packer(self) -> OpenPacker:
        if self.room:
            return lambda documents, token, _: RowPacker(documents, token, self.sample, self.room, self.positions)
        return lambda documents, token, _: DocumentPacker(documents, token, self.sample)
