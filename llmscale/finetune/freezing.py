"""Freezing what a run does not train."""

from torch import nn

from llmscale.config import RunConfig
from llmscale.finetune.trained import Training, names_of, training_of


def freeze(model: nn.Module, config: RunConfig) -> Training:
    """Freeze what `finetune` does not train of this rank's part of a model."""
    if config.finetune is None:
        return training_of(config, ())
    training = training_of(config, names_of(config.model))
    for name, parameter in model.named_parameters():
        if name not in training.names:
            parameter.requires_grad_(False)
    return training
