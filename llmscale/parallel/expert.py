"""Expert parallelism: data-parallel ranks share the experts, and tokens travel to them (GShard, Lepikhin et al. 2021,
section 3.2).

Every rank routes its own tokens with the whole router, as one process does; only the work of the experts is elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmscale.model import Transformer
from llmscale.model.experts import ExpertLinear, Experts
from llmscale.model.uncompiled import uncompiled
from llmscale.parallel.collectives import travel
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.parameters import narrow
from llmscale.parallel.swap import mix_in
from llmscale.slices.tensor_slice import TensorSlice


@dataclass(frozen=True)
class ExpertRanks:
    """An expert-parallel group as its modules see it: each rank has equally many experts, in order."""

    group: Any
    size: int


class SharedExperts(Experts):
    """Experts of which this rank has some, for its own tokens and those of the other ranks of its group."""

    shared: ExpertRanks

    # The compiler would make new code for all new numbers of tokens.
    @uncompiled
    def _compute(self, inputs: Tensor, expert: Tensor, counts: Tensor) -> Tensor:
        group, size = self.shared.group, self.shared.size
        # Rows: ranks; columns: the experts of one rank.
        leaving = counts.view(size, -1)
        coming = torch.empty_like(leaving)
        dist.all_to_all_single(coming, leaving, group=group)
        sent, received = torch.stack([leaving, coming]).sum(-1).tolist()
        # What comes is in the order of ranks, then experts; it must be in that of experts.
        own = torch.arange(leaving.shape[1], device=inputs.device).repeat(size)
        own = own.repeat_interleave(coming.flatten(), output_size=sum(received))
        order = own.argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        tokens = travel(inputs, group, sent, received)[order]
        outputs = super()._compute(tokens, own[order], coming.sum(0))
        return travel(outputs[back], group, received, sent)


def apply_expert_parallel(model: Transformer, grid: RankGrid, slices: dict[str, TensorSlice]) -> None:
    """Leave a model this rank's experts only, in place; nothing where the expert-parallel size is 1.

    Args:
        model: on the meta device, shared by tensor-parallel ranks already, where it is to be.
        grid: with process groups.
        slices: what each cut parameter is a part of, by name; those of experts are cut further.
    """
    if grid.expert == 1:
        return
    ranks = grid.expert_ranks()
    shared = ExpertRanks(grid.group_of(ranks), grid.expert)
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            mix_in(module, SharedExperts, shared=shared)
        if isinstance(module, ExpertLinear):
            for own, parameter in list(module.named_parameters(recurse=False)):
                whole = slices.get(f"{name}.{own}") or TensorSlice.whole(parameter.shape)
                slices[f"{name}.{own}"] = whole.narrowed(0, ranks.index(grid.rank), grid.expert)
                narrow(module, own, slices[f"{name}.{own}"])
