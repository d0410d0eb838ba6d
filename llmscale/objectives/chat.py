"""What the assistant says, of decoders."""

from __future__ import annotations

from data_pipeline.objectives.chat import ChatObjective
from llmscale.objectives.objective import ModelSide, Shape


class Chat(ModelSide[ChatObjective]):
    """Prompts are dialogues by the tokenizer's chat template."""

    settings = ChatObjective

    def shape(self, sequence_length: int) -> Shape:
        return Shape(sequence_length, masked=self.config.pack)
