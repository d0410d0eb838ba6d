"""Giving a model its weights as it starts: whole on every rank, or at ZeRO 3 to each rank its part alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmscale.engine.deepspeed.shims import tell_device
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.init import Weights, fill
from llmscale.parallel.parameters import slice_of
from llmscale.slices.tensor_slice import TensorSlice

Named = list[tuple[str, nn.Parameter]]


def held(named: Named) -> Weights:
    """The values that parameters have now."""
    values = {name: parameter.detach() for name, parameter in named}

    def read(name: str, part: TensorSlice) -> Tensor:
        return values[name].reshape(-1)[part.start : part.end]

    return read


@torch.no_grad()
def place(named: Named, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter all of its values on `device`, one tensor at a time."""
    for name, parameter in named:
        values = parameter.data
        if values.device != device or values.dtype != dtype or not values.is_contiguous():
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
        fill(values.view(-1), weights, name, slice_of(parameter))
        parameter.data = values


@torch.no_grad()
def partition(
    named: Named,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    grid: RankGrid,
    settings: dict[str, Any],
) -> None:
    """Make of every parameter what ZeRO 3 makes of it, with this rank's part of its values and nothing else.

    DeepSpeed's own way (zero.Init) makes each parameter whole, broadcasts it and cuts it. `settings` are its config.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init, PartitionedParamStatus

    # It numbers parameters and modules as long as a process lives, but wants all ranks to have the same numbers, which
    # processes that trained other models before would not have.
    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0

    tell_device(device)
    group = grid.get_data_parallel_group()
    maker = Init(data_parallel_group=group, config_dict_or_path=settings, dtype=dtype, mpu=grid)
    for name, parameter in named:
        # All its elements are one in memory, so that a shape is all that it takes.
        parameter.data = torch.zeros((), dtype=dtype, device=device).expand(parameter.shape)
        maker._convert_to_deepspeed_param(parameter)
        numel = maker._aligned_size(parameter) // grid.get_data_parallel_world_size()
        own = torch.zeros(numel, dtype=dtype, device=maker.remote_device)
        mine = slice_of(parameter).chunk(grid.get_data_parallel_rank(), numel)
        fill(own[: mine.numel], weights, name, mine)
        own.ds_numel, own.status, own.final_location = numel, PartitionedParamStatus.AVAILABLE, None  # type: ignore[attr-defined]
        parameter.ds_tensor, parameter.ds_numel_aligned = own, maker._aligned_size(parameter)  # type: ignore[attr-defined]
        parameter.partition()  # type: ignore[attr-defined]
