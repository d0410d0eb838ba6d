"""What all layers of a stack share in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llmscale.model.cache import KeyValueCache
from llmscale.model.dropout import LayerDropout
from llmscale.model.positions import Tables


@dataclass(frozen=True)
class Context:
    """Tables and masks, made once for all layers. `global` and `local` layers have their own."""

    rotary: dict[str, Tables | None]
    """Rotary tables by kind of layer."""
    masks: dict[str, Tensor | None]
    """By kind of layer: booleans (B or 1, 1, T, S), or biases (B or 1, heads, T, S) with -inf where nothing is seen;
    None: causal in a decoder, everything in an encoder."""
    padding_mask: Tensor | None = None
    """(B, T) booleans: False for padding tokens. None: there is no padding."""
    segment_ids: Tensor | None = None
    """(B, T) number of each token's document, where documents are separate."""
    memory: Tensor | None = None
    """(B, S, hidden_size): the encoder's result; not needed once a cache has its keys and values."""
    memory_mask: Tensor | None = None
    """(B, 1, 1, S) booleans: which tokens of the memory are seen."""
    cache: KeyValueCache | None = None
    """Keys and values of earlier tokens."""
    queries: Tensor | None = None
    """(B or 1, T, hidden_size): what a query layer asks with."""
    dropout: LayerDropout | None = None
    """What this layer drops; None: nothing, as always outside of training."""
