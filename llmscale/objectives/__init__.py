"""Losses, one file per objective: what a model must predict from a `Batch`."""

from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.masked import MaskedObjective
from llmscale.config import ModelConfig
from llmscale.objectives.causal import CausalLoss
from llmscale.objectives.encoder_decoder import EncoderDecoderLoss
from llmscale.objectives.loss import Loss
from llmscale.objectives.masked import MaskedLoss

__all__ = ["Loss", "build_loss"]


def build_loss(objective: ObjectiveConfig, model: ModelConfig) -> Loss:
    """The loss of an objective for a model that `llmscale.layout` lets it train."""
    experts = any(model.has_experts(layer) for layer in range(model.layers))
    match model.architecture:
        case "decoder":
            return CausalLoss(experts)
        case "encoder":
            return MaskedLoss(experts, isinstance(objective, MaskedObjective) and objective.next_sentence)
        case "encoder_decoder":
            return EncoderDecoderLoss(experts)
