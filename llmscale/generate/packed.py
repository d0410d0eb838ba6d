"""A model's matrix products made ready for reading one token at a time on a CPU.

The copy shares everything with the model but its projections, which hold their weights in the blocked layout of oneDNN:
products with few rows are bound by how the weight is read. Query, key and value are one product, and activations
are applied while a product is written. What a model computes stays said in `llmscale.model` alone.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn

from llmscale.config import ModelConfig
from llmscale.model import Transformer
from llmscale.model.attention.modules.multi_head import Attention
from llmscale.model.feed_forward import FeedForward
from llmscale.model.linear import Linear
from llmscale.model.projections import Vocabulary

_ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
    "swiglu": ("swish", ""),
    "geglu": ("gelu", "none"),
    "geglu_tanh": ("gelu", "tanh"),
    "reglu": ("relu", ""),
}
"""oneDNN's name and variant of each `model.activation`."""


class PackedLinear(nn.Module):
    """activation(x @ weight^T + bias) with a packed weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: tuple[str, str] = ("none", "")) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach()
        self.activation, self.variant = activation
        self.product = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.product(x, self.packed, self.bias, self.activation, [], self.variant)


class PackedAttention(Attention):
    """Attention whose queries, keys and values are one product."""

    def pack(self) -> None:
        """Take over a copy of an `Attention`."""
        parts = (self.query, self.key, self.value)
        self.sizes = [part.out_features for part in parts]
        bias = None if self.query.bias is None else torch.cat([part.bias for part in parts])
        self.joined = PackedLinear(torch.cat([part.weight for part in parts]), bias)
        self.output = PackedLinear(self.output.weight, self.output.bias)  # type: ignore[assignment]

    def project(self, asking: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `Attention`, where a layer asks with the hidden states themselves."""
        query, key, value = self.joined(hidden).split(self.sizes, dim=-1)
        return query, key, value


class PackedFeedForward(FeedForward):
    """A feed-forward layer whose activation is part of a product."""

    def pack(self, activation: str) -> None:
        """Take over a copy of a `FeedForward` with this `model.activation`."""
        names = {"up", "down"} if self.gate is None else {"up", "gate", "down"}
        activated = "up" if self.gate is None else "gate"
        for name in names:
            plain = getattr(self, name)
            applied = _ACTIVATIONS[activation] if name == activated else ("none", "")
            setattr(self, name, PackedLinear(plain.weight, plain.bias, applied))
        self.activation = _same


class PackedHead(Vocabulary):
    """A head with a packed weight."""

    def pack(self) -> None:
        """Take over a copy of a `Vocabulary`."""
        self.packed = PackedLinear(self.weight, self.bias)

    def project(self, hidden: Tensor) -> Tensor:
        """As in `Vocabulary`."""
        return self.packed(hidden)


def packed(model: Transformer) -> Transformer:
    """A copy of `model` for generation that gives the same up to rounding, in less time.

    It is the model itself where packing does not help or cannot be had: on other devices, in other types than fp32,
    without oneDNN, or where the copy of the weights would take more than half of the memory that is free.
    Changes of the model's weights do not reach the copy.
    """
    weight = model.head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _available():
        return model
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
        return model
    with torch.no_grad():
        return _packed(model, model.config)


def _available() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


def _packed(module: Any, config: ModelConfig) -> Any:
    """A copy of a module with packed projections that shares everything else."""
    if type(module) is Linear:
        return PackedLinear(module.weight, module.bias)
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    # A query layer asks with other states than it is asked about.
    if type(module) is Attention and not (config.query_layer and module.layer == config.layers - 1):
        clone.__class__ = PackedAttention
        clone.pack()
    elif type(module) is FeedForward:
        clone.__class__ = PackedFeedForward
        clone.pack(config.activation)
    else:
        for name, child in module._modules.items():
            clone._modules[name] = None if child is None else _packed(child, config)
    if type(module) is Vocabulary:
        clone.__class__ = PackedHead
        clone.pack()
    return clone


def _same(x: Tensor) -> Tensor:
    return x
