"""What DeepSpeed must know of experts that data-parallel ranks share: whose gradients and states belong together.

The gradient of an expert comes from the tokens of all ranks that share the experts with this one; DeepSpeed adds it up
over the ranks that have the same experts, and divides by the number of all data-parallel ranks as for all others.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from llmscale.model.experts import ExpertLinear
from llmscale.parallel.grid import RankGrid


def mark_experts(model: nn.Module, grid: RankGrid) -> None:
    """Mark the parameters of experts that ranks share, by the attributes that DeepSpeed looks for."""
    experts = [module for module in model.modules() if isinstance(module, ExpertLinear)] if grid.expert > 1 else []
    for parameter in (parameter for module in experts for parameter in module.parameters(recurse=False)):
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = _name(grid)  # type: ignore[attr-defined]


def expert_group_of(parameter: Any) -> str | None:
    """The name that DeepSpeed has for the ranks of a marked parameter; None: all data-parallel ranks have it."""
    return None if getattr(parameter, "allreduce", True) else parameter.group_name


def experts_of_deepspeed(grid: RankGrid) -> nn.Module | None:
    """A module without parameters by which DeepSpeed sees that there are such experts; None where there are none."""
    if grid.expert == 1:
        return None
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups

    class Announcement(MoE):
        """DeepSpeed looks for modules of its own class, and lets them make the process groups."""

        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = grid.expert

        def set_deepspeed_parallelism(self, *_: Any, **__: Any) -> None:
            for ranks, kind in ((grid.expert_ranks(), "EXPERT"), (grid.expert_replicas(), "EXPERT_DATA")):
                getattr(groups, f"_{kind}_PARALLEL_GROUP")[_name(grid)] = grid.group_of(ranks)
                getattr(groups, f"_{kind}_PARALLEL_GROUP_RANKS")[_name(grid)] = ranks

    return Announcement()


def _name(grid: RankGrid) -> str:
    return f"ep_size_{grid.expert}"
