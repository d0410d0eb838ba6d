"""Tensors that begin from drawn values in place of a checkpoint's."""

from torch import Tensor

from llmscale.finetune.trained import Training
from llmscale.parallel.init import Weights
from llmscale.slices.tensor_slice import TensorSlice


def redrawn(stored: Weights, training: Training, drawn: Weights) -> Weights:
    """The weights of `stored`, but for what `training` re-initialises, which are those of `drawn`."""

    def read(name: str, part: TensorSlice) -> Tensor:
        return (drawn if name in training.redrawn else stored)(name, part)

    return read
