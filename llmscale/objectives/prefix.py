"""The rest after a prefix, of decoders."""

from __future__ import annotations

from data_pipeline.objectives.prefix import PrefixObjective
from llmscale.objectives.objective import ModelSide, Shape


class Prefix(ModelSide[PrefixObjective]):
    """Prompts are prefixes, too."""

    settings = PrefixObjective
    reading = "prefix"

    def shape(self, sequence_length: int) -> Shape:
        return Shape(sequence_length, masked=True)
