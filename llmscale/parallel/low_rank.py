"""Factors of layers that tensor-parallel ranks share: cut as the layer's weight is.

Of a layer cut by outputs, B is cut and A whole; of one cut by inputs A is cut and B whole. What is whole acts on a
part of the layer on each rank, so that its gradient is the sum of the ranks'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from llmscale.model.factors import DOWN, FACTORS, MAGNITUDE, UP
from llmscale.model.low_rank import LowRank
from llmscale.parallel.collectives import copy, total


class SharedLowRank(LowRank):
    """What the factors add to a layer that ranks share."""

    def __init__(self, own: LowRank, summed: Mapping[str, Any], inputs: Any = None) -> None:
        """
        Args:
            own: what they add to the whole layer.
            summed: the ranks over which the gradient of a factor is summed, by the factor's name.
            inputs: the ranks that share the layer's inputs; None: each has all.
        """
        self.__dict__.update(own.__dict__)
        self.splits_inputs = inputs is not None
        self._summed, self._inputs = summed, inputs

    def factors(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        found = {name: own for name, own in module.named_parameters(recurse=False) if name in FACTORS}
        shared = {name: copy(own, self._summed[name]) for name, own in found.items() if name in self._summed}
        found.update(shared)
        return found[DOWN], found[UP], found.get(MAGNITUDE)

    def squares(self, rows: Tensor) -> Tensor:
        found = super().squares(rows)
        return total(found, self._inputs) if self.splits_inputs else found


def share_factors(module: nn.Module, summed: Mapping[str, Any], inputs: Any = None) -> None:
    """Let the factors of a layer, if it has any, act as a part of it; the arguments are those of `SharedLowRank`."""
    own = getattr(module, "low_rank", None)
    if own is not None:
        module.low_rank = SharedLowRank(own, summed, inputs)  # type: ignore[assignment]
