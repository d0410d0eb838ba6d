"""The position-wise feed-forward layer."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.dropout import LayerDropout, Place, drop
from llmscale.model.linear import Linear

_GELU_TANH = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _GELU_TANH,
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu_tanh": _GELU_TANH,
    "reglu": F.relu,
}
"""The function by `model.activation`; the gated ones apply it to the gate."""


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) * up(x)) for gated ones (Shazeer 2020, equation 6)."""

    def __init__(self, config: ModelConfig, inner: int) -> None:
        """`inner`: its width, in channels."""
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = Linear(config.hidden_size, inner, bias=config.bias)
        self.gate = Linear(config.hidden_size, inner, bias=config.bias) if config.gated else None
        self.down = Linear(inner, config.hidden_size, bias=config.bias)
        self.inner_dropout = config.dropout if config.dropout_scheme == "t5" else 0.0

    def forward(self, hidden: Tensor, dropout: LayerDropout | None = None) -> Tensor:
        """(B, T, hidden_size) to the same shape."""
        if self.gate is not None:
            inner = self.activation(self.gate(hidden)) * self.up(hidden)
        else:
            inner = self.activation(self.up(hidden))
        if dropout is not None and self.inner_dropout:
            part = dropout.part.inner_positions, dropout.part.channels
            inner = drop(inner, dropout.keys[Place.INNER], self.inner_dropout, part)
        return self.down(inner)
