"""Encoders: each token hidden in turn, together with those that follow it in its word."""

from __future__ import annotations

from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.reading.reader import ReadAnswer
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.pseudo_likelihood import PseudoLikelihood


class WithinWordLeftToRight(PseudoLikelihood):
    """As the pseudo-likelihood, but a token does not see the rest of its own word, which would give it away (Kauf and
    Ivanova 2023, section 3)."""

    name = "within_word_l2r"

    @staticmethod
    def fits(model: ModelConfig, objective: ObjectiveConfig) -> int:
        return int(model.architecture == "encoder")

    def _hidden(self, read: ReadAnswer, number: int) -> range:
        words = self.reader.words(read)
        last = number
        while last + 1 < len(words) and words[last + 1] == words[number]:
            last += 1
        return range(number, last + 1)
