"""Freezing what a run does not train."""

from torch import nn

from llmscale.config.finetune import FinetuneConfig
from llmscale.config.model import ModelConfig
from llmscale.finetune.trained import Training, names_of, training_of


def freeze(model: nn.Module, config: ModelConfig, finetune: FinetuneConfig | None) -> Training:
    """Freeze what `finetune` does not train of this rank's part of a model."""
    if finetune is None:
        return training_of(config, finetune, ())
    training = training_of(config, finetune, names_of(config))
    for name, parameter in model.named_parameters():
        if name not in training.names:
            parameter.requires_grad_(False)
    return training
