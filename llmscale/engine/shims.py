"""What is needed of DeepSpeed's insides, all in one place: quiet start-up and the state of each parameter.

Written against DeepSpeed 0.19.8, which constraints.txt pins; tests/engine holds each of these to plain torch.
"""

from __future__ import annotations

import logging
import os
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmscale.checkpoint.fragments import Fragment

WEIGHT = "weight"
# Reads a flat fp32 range of a global tensor: (name, kind, shape, start, end) -> 1-D tensor of end - start elements.
RangeReader = Callable[[str, str, tuple[int, ...], int, int], torch.Tensor]


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without the compilation and the messages that its import and start-up bring.

    On CPU its first collective would otherwise compile a shared-memory extension for most of a minute.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed insists on it even where a single process needs no launcher.
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def save_passes_over_gradients(engine: Any) -> None:
    """Spare ZeRO 1 and 2 two costs that show on a CPU: the norm in converted fp64, and averaging over one rank."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return
    optimizer.get_grad_norm_direct = types.MethodType(_grad_norm, optimizer)
    if dist.get_world_size(optimizer.dp_process_group) == 1:
        # Copies every gradient into a bucket and back, to change nothing.
        optimizer.allreduce_and_copy = lambda *_, **__: None


def _grad_norm(optimizer: Any, gradients: list[torch.Tensor], params: list[nn.Parameter], norm_type: int = 2) -> Any:
    """What ZeroOptimizer.get_grad_norm_direct computes: the norm over all ranks, -1 where it is not finite."""
    from deepspeed.runtime.utils import is_model_parallel_parameter, mask_nan_or_inf_with_val_inplace

    assert norm_type == 2
    total = torch.zeros((), dtype=torch.float64, device=optimizer.device)
    real = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
    for gradient, parameter in zip(real, params, strict=False):
        replica = getattr(parameter, "ds_pipe_replicated", False)
        if not replica and (is_model_parallel_parameter(parameter) or optimizer.model_parallel_rank == 0):
            total += sum_of_squares(gradient.detach())
    dist.all_reduce(total, group=optimizer.dp_process_group)
    optimizer._model_parallel_all_reduce(tensor=total, op=dist.ReduceOp.SUM)
    norm = total.sqrt().float()
    mask_nan_or_inf_with_val_inplace(norm, device=optimizer.device)
    return norm


def sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares in fp64, without an fp64 copy of the values: fp32 within short chunks, fp64 over them.

    Summing many millions of fp32 squares in fp32 is off in the fourth digit.
    """
    chunks = values.reshape(-1).float().split(1 << 16)
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).double().sum()


def create_optimizer_state(engine: Any) -> None:
    """Give every partition the state that the optimizer's first step would create, so that it can be saved and loaded.

    AdamW starts from zero moments and step 0, SGD with momentum from a zero buffer: in both cases the first real step
    then computes what it would have computed without.
    """
    optimizer = _inner_optimizer(engine)
    for partition in _partitions(engine):
        state = optimizer.state[partition]
        if state:
            continue
        if isinstance(optimizer, torch.optim.AdamW):
            state["step"] = torch.zeros((), dtype=torch.float32, device=partition.device)
            state["exp_avg"] = torch.zeros_like(partition)
            state["exp_avg_sq"] = torch.zeros_like(partition)
        elif isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(partition)


def state_kinds(engine: Any) -> list[str]:
    """What is kept of each trained parameter: its weight and the optimizer's tensors."""
    states = _inner_optimizer(engine).state
    keys = {key for state in states.values() for key, value in state.items() if torch.is_tensor(value) and value.dim()}
    return [WEIGHT, *sorted(keys)]


def optimizer_steps(engine: Any) -> int:
    """Updates that the optimizer has made (AdamW's bias correction counts them)."""
    steps = {int(state["step"]) for state in _inner_optimizer(engine).state.values() if "step" in state}
    assert len(steps) <= 1, f"partitions disagree on the optimizer step: {steps}"
    return steps.pop() if steps else 0


def set_optimizer_steps(engine: Any, steps: int) -> None:
    """Restore the count that `optimizer_steps` gives."""
    for state in _inner_optimizer(engine).state.values():
        if "step" in state:
            state["step"].fill_(float(steps))


def fragments(engine: Any, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
    """What this rank owns of every tensor: fp32 masters and optimizer tensors, as views of DeepSpeed's buffers."""
    for name, parameter in named:
        shape = _global_shape(parameter)
        for kind in state_kinds(engine) if parameter.requires_grad else [WEIGHT]:
            for start, values in _owned(engine, parameter, kind):
                yield Fragment(
                    name, kind, shape, (0,) * len(shape), shape, start, start + values.numel(), values.detach()
                )


def load(engine: Any, named: list[tuple[str, nn.Parameter]], read: RangeReader) -> None:
    """Fill what this rank owns from `read`, then refresh the weights that the forward pass uses.

    Never holds more than one tensor's part besides the model.
    """
    for name, parameter in named:
        shape = _global_shape(parameter)
        for kind in state_kinds(engine) if parameter.requires_grad else [WEIGHT]:
            for start, values in _owned(engine, parameter, kind):
                values.data.copy_(read(name, kind, shape, start, start + values.numel()))
    _refresh_weights(engine)


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer


def _partitions(engine: Any) -> list[torch.Tensor]:
    """The flat fp32 tensors that the optimizer updates."""
    if engine.zero_optimization_stage() == 3:
        return engine.optimizer.fp32_partitioned_groups_flat
    return engine.optimizer.single_partition_of_fp32_groups


def _global_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _owned(engine: Any, parameter: nn.Parameter, kind: str) -> Iterator[tuple[int, torch.Tensor]]:
    """(first element, flat view) of this rank's part of one tensor, without padding; nothing where it owns none."""
    if hasattr(parameter, "ds_id"):
        yield from _owned_stage3(engine, parameter, kind)
    elif not parameter.requires_grad:
        if dist.get_rank(engine.optimizer.dp_process_group) == 0:
            yield 0, parameter.data.view(-1)
    elif parameter._hp_mapping is not None:
        mapping = parameter._hp_mapping
        values = mapping.hp_fragment
        if kind != WEIGHT:
            partition = _partitions(engine)[mapping.param_group_index]
            address = mapping.hp_fragment_address
            values = _inner_optimizer(engine).state[partition][kind].narrow(0, address.start, address.numel)
        yield mapping.lp_fragment_address.start, values


def _owned_stage3(engine: Any, parameter: Any, kind: str) -> Iterator[tuple[int, torch.Tensor]]:
    """Stage 3 cuts each flattened tensor into equal parts, the last ones padded."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if not parameter.requires_grad:
        values = parameter.ds_tensor.data
    elif kind == WEIGHT:
        values = safe_get_local_fp32_param(parameter)
    else:
        values = safe_get_local_optimizer_state(parameter, kind)
    part = parameter.ds_tensor.ds_numel
    start = part * dist.get_rank(parameter.ds_process_group)
    count = min(part, parameter.ds_numel - start)
    if count > 0:
        yield start, values.view(-1)[:count]


def _refresh_weights(engine: Any) -> None:
    """Copy the fp32 masters into the weights that the forward pass reads, on every rank."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(group)
    if optimizer.persistent_parameters:
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
