"""Low-rank factors beside linear layers: LoRA (Hu et al. 2021), DoRA (Liu et al. 2024, equation 5).

A layer with factors has the parameters `lora_a` (rank, inputs) and `lora_b` (outputs, rank), of experts a stack of
them, and with DoRA `magnitude` (outputs,), beside its weight and of its own, so that ZeRO 3 gathers all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.base.errors import UserError
from llmscale.config.lora import LoraConfig
from llmscale.model.block import Block
from llmscale.model.dropout import LayerDropout, Place, drop, fold
from llmscale.model.experts import ExpertLinear
from llmscale.model.factors import MAGNITUDE, targeted
from llmscale.model.grouped import grouped_product
from llmscale.model.linear import Linear, linear

_ALIGNED = 16
"""Bytes of which the rows of grouped products must be a multiple."""


class LowRank:
    """What the factors of a layer add to it."""

    splits_inputs = False
    """Whether the layer sees a part of its inputs' channels only."""

    def __init__(self, settings: LoraConfig, number: int) -> None:
        """`number`: of the layer within its block, for what dropout drops."""
        self.scale, self.dropout, self._number = settings.scale, settings.dropout, number
        self._lent: LayerDropout | None = None

    def lend(self, dropout: LayerDropout | None) -> None:
        """Say what the passes from now on drop."""
        self._lent = dropout

    def __call__(self, module: Linear, input: Tensor, weight: Tensor, projected: Tensor) -> Tensor:
        """What a layer without bias makes of (..., inputs): (..., outputs).

        Args:
            weight: the layer's.
            projected: the input times the weight.
        """
        return self._added(module, weight, input, projected, linear, lambda rows: rows)

    def grouped(self, module: ExpertLinear, tokens: Tensor, projected: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """The same of experts, whose arguments are those of `ExpertLinear.forward`."""

        def multiply(rows: Tensor, weights: Tensor) -> Tensor:
            return grouped_product(rows, weights, ends)

        # Rows of some other number of bytes are refused by torch's kernel, so zeros fill the rank up.
        more = -module.lora_a.shape[-2] % (_ALIGNED // tokens.element_size())  # type: ignore[operator, union-attr, index]
        return self._added(module, module.weight, tokens, projected, multiply, lambda rows: rows[expert], more)

    def _added(
        self,
        module: Linear | ExpertLinear,
        weight: Tensor,
        input: Tensor,
        projected: Tensor,
        multiply: Callable[[Tensor, Tensor], Tensor],
        of_rows: Callable[[Tensor], Tensor],
        more: int = 0,
    ) -> Tensor:
        down, up, magnitude = self.factors(module)
        if more:
            down, up = F.pad(down, (0, 0, 0, more)), F.pad(up, (0, more))
        kept = self._kept(input)
        added = multiply(multiply(kept, down) * self.scale, up)
        if magnitude is None:
            return projected + added
        length = self._lengths(weight, down, up).to(magnitude.dtype)
        share = of_rows(magnitude / length)
        if kept is input:
            return share * (projected + added)
        # Of the weight's own product, only what DoRA adds to it is dropped, as peft does.
        return projected + (share - 1) * multiply(kept, weight) + share * added

    def factors(self, module: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
        """A, B and the magnitudes of a layer, as they are to enter the graph."""
        return module.lora_a, module.lora_b, getattr(module, MAGNITUDE, None)  # type: ignore[return-value]

    def squares(self, rows: Tensor) -> Tensor:
        """The sum of squares over the inputs, (..., outputs, inputs) to (..., outputs)."""
        return rows.square().sum(-1)

    def whole_weight(self, module: Linear | ExpertLinear) -> Tensor:
        """(outputs, inputs) or (experts, outputs, inputs): what the layer multiplies with in all."""
        return merged(
            module.weight, module.lora_a, module.lora_b, getattr(module, MAGNITUDE, None), self.scale, self.squares
        )  # type: ignore[arg-type]

    @torch.no_grad()
    def _lengths(self, weight: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Of the rows of the weight with what is added to it, without a gradient (DoRA, section 4.3)."""
        return self.squares(weight.float() + self.scale * (up.float() @ down.float())).sqrt()

    def _kept(self, input: Tensor) -> Tensor:
        """The input without what is dropped of it."""
        if not self.dropout or self._lent is None:
            return input
        part = self._lent.part
        keys = fold(self._lent.keys[Place.LOW_RANK], self._number)
        where = part.inner_positions, part.channels if self.splits_inputs else 0
        return drop(input, keys, self.dropout, where)


def merged(
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    magnitude: Tensor | None,
    scale: float,
    squares: Callable[[Tensor], Tensor] = lambda rows: rows.square().sum(-1),
) -> Tensor:
    """The one weight, in place of a weight and its factors, of their dtype.

    Args:
        weight: (..., outputs, inputs).
        down: (..., rank, inputs).
        up: (..., outputs, rank).
        magnitude: (..., outputs), or None without DoRA.
        squares: the sum of squares over all inputs.
    """
    whole = weight + scale * (up @ down)
    if magnitude is None:
        return whole
    return whole * (magnitude / squares(whole).sqrt())[..., None]


def add_factors(model: nn.Module, settings: LoraConfig) -> None:
    """Give the targeted layers of a model their factors, in place, on the device of new tensors.

    Raises:
        UserError: a target matches nothing, the rank is above what a layer has of inputs or outputs, or inputs of
            experts are to be dropped.
    """
    layers: dict[str, Linear | ExpertLinear] = {}
    for name, module in model.named_modules():
        if _is_candidate(name, module):
            layers[name] = module
    named = targeted(settings.targets, layers)
    chosen = {name: module for name, module in layers.items() if name in named}
    for name, module in chosen.items():
        *experts, outputs, inputs = module.weight.shape
        if settings.rank > min(inputs, outputs):
            raise UserError(
                f"finetune.lora.rank is {settings.rank}, but {name} has {inputs} inputs and {outputs} outputs; set"
                f" finetune.lora.rank={min(inputs, outputs)} or less, or leave it out of finetune.lora.targets"
            )
        if experts and settings.dropout:
            raise UserError(
                f"finetune.lora.dropout is {settings.dropout}, but finetune.lora.targets name {name}, whose experts"
                f" take rows of many samples; set finetune.lora.dropout=0, or name attention alone"
            )
        module.lora_a = nn.Parameter(torch.empty(*experts, settings.rank, inputs))
        module.lora_b = nn.Parameter(torch.empty(*experts, outputs, settings.rank))
        if settings.dora:
            module.magnitude = nn.Parameter(torch.empty(*experts, outputs))
    for place, block in model.named_modules():
        if isinstance(block, Block):
            own = [name for name in layers if name.startswith(f"{place}.")]
            for number, name in enumerate(own):
                if name in chosen:
                    chosen[name].low_rank = LowRank(settings, number)
            block.low_ranks = [chosen[name] for name in own if name in chosen] if settings.dropout else []


def _is_candidate(name: str, module: nn.Module) -> TypeGuard[Linear | ExpertLinear]:
    """Whether a module is a linear layer of a block that may have factors; a router, which only chooses, may not."""
    *within, own = name.split(".")
    return isinstance(module, Linear | ExpertLinear) and "blocks" in within and own != "router"
