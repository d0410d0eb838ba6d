"""Preferences: the language model of a decoder, by the probabilities of whole answers."""

from __future__ import annotations

from data_pipeline.objectives.preference import NAME, PreferenceObjective
from llmscale.config import ModelConfig, RunConfig
from llmscale.model.heads import Head
from llmscale.objectives.objective import ModelSide, Reading, Shape


class Preference(ModelSide[PreferenceObjective]):
    """Sees two answers side by side, and counts a pair as one target."""

    settings = PreferenceObjective

    @property
    def reading(self) -> Reading:  # type: ignore[override]
        return "source" if self.config.end_prompt else "document"

    def reference(self, config: RunConfig) -> tuple[str, str] | None:
        if not self.config.compares:
            return None
        if self.config.reference is not None:
            return "objective.reference", self.config.reference
        assert config.train.init_from is not None, "refused by llmscale.layout"
        return "train.init_from", config.train.init_from

    def heads(self, model: ModelConfig) -> tuple[Head, ...]:
        from llmscale.objectives.preference_loss import PreferenceLoss

        return (PreferenceLoss(model, self.config),)

    def whole_sequences(self, model: ModelConfig) -> tuple[str, ...]:
        return (NAME,)

    def shape(self, sequence_length: int) -> Shape:
        return Shape(2 * sequence_length, masked=True)

    def impossible(self, config: RunConfig) -> str | None:
        if not self.config.compares:
            return None
        if self.config.reference is None and config.train.init_from is None:
            return (
                f"objective.loss is {self.config.loss}, which compares with a reference, but neither"
                f" objective.reference nor train.init_from is given; set train.init_from to the model to start from"
            )
        if not config.data.finite:
            return (
                f"objective.loss is {self.config.loss}, whose reference goes through all samples first, but data.order"
                f" is {config.data.order}, which has no end; set data.order=finite"
            )
        return None
