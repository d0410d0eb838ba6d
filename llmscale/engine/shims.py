"""What is needed of DeepSpeed's insides, all in one place: quiet start-up and the state of each parameter.

Written against DeepSpeed 0.19.8, which constraints.txt pins; tests/engine holds each of these to plain torch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmscale.checkpoint.fragments import Fragment
from llmscale.engine.experts import expert_group_of
from llmscale.engine.optimizers import Part, ShardedOptimizer, create_state
from llmscale.parallel.init import Weights, fill
from llmscale.parallel.shards import Shard, shard_of

WEIGHT = "weight"
# Reads a flat fp32 range of a rectangle of a global tensor: (name, kind, rectangle, start, end) -> 1-D tensor of
# end - start elements.
RangeReader = Callable[[str, str, Shard, int, int], torch.Tensor]


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without the compilation and the messages that its import and start-up bring.

    On CPU its first collective would otherwise compile a shared-memory extension for most of a minute.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed insists on it even where a single process needs no launcher.
    os.environ.setdefault("LOCAL_RANK", "0")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that torch 2.13 has replaced, and torch says so at every start.
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cpu":
        # torch computes in fp16 on any CPU, if slowly; DeepSpeed asks for instructions that few have.
        type(deepspeed.get_accelerator()).is_fp16_supported = lambda self: True
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def restart_numbers() -> None:
    """Let DeepSpeed number modules and parameters from 0 again, once no engine is left.

    Stage 3 wants the same numbers on all ranks, but those of a pool may have trained different models before.
    """
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    if offload is not None:
        offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        sys.modules["deepspeed.runtime.zero.partition_parameters"].Init.param_id = 0  # type: ignore[attr-defined]


@contextlib.contextmanager
def one_kind_of_optimizer(deepspeed: Any) -> Iterator[None]:
    """Within the block, engines that start take for ZeRO 1 with bf16 weights the optimizer that they take for all else.

    Where gradients are summed in fp32, DeepSpeed would take its BF16_Optimizer for this one case.
    """
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    engine, check = deepspeed.DeepSpeedEngine, deepspeed.DeepSpeedEngine._do_optimizer_sanity_check

    def always_zero(self: Any, optimizer: Any) -> str:
        check(self, optimizer)
        return ZERO_OPTIMIZATION

    engine._do_optimizer_sanity_check = always_zero
    try:
        yield
    finally:
        engine._do_optimizer_sanity_check = check


@contextlib.contextmanager
def linear_that_keeps_no_weight() -> Iterator[None]:
    """Within the block, linear layers do not keep gathered weights for the backward pass, which gathers them again.

    DeepSpeed replaces torch's function for good, with all else that the process computes.
    """
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    plain = nn.functional.linear
    nn.functional.linear = zero3_linear_wrap
    try:
        yield
    finally:
        nn.functional.linear = plain


def share_masters(engine: Any) -> None:
    """Let fp32 weights at ZeRO 3 be their own masters, as DeepSpeed means them to be where nothing is offloaded.

    It compares a device with the name of a device, finds them different and makes a copy.
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() != 3 or optimizer.dtype != torch.float32 or optimizer.offload_optimizer:
        return
    masters = optimizer.fp32_partitioned_groups_flat
    for place, weights in enumerate(optimizer.fp16_partitioned_groups_flat):
        weights.ds_id = masters[place].ds_id
        masters[place] = weights.requires_grad_()


def save_passes_over_gradients(engine: Any) -> None:
    """Spare costs that show: at ZeRO 1 and 2 the norm in converted fp64, and averaging over one rank; at ZeRO 3 a copy
    of all gradients."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer._prepare_fp32_grad_for_sub_group = types.MethodType(_gradient_of_sub_group, optimizer)
        return
    optimizer.get_grad_norm_direct = types.MethodType(_grad_norm, optimizer)
    if dist.get_world_size(optimizer.dp_process_group) == 1 and optimizer.dtype == torch.float32:
        # Copies every gradient into a bucket and back, to change nothing.
        optimizer.allreduce_and_copy = lambda *_, **__: None


def _gradient_of_sub_group(optimizer: Any, number: int) -> None:
    """What DeepSpeedZeroOptimizer_Stage3._prepare_fp32_grad_for_sub_group does, with a view of the buffer that has all
    gradients in the order of the masters, where that flattens the parts of it into a new one."""
    sizes = optimizer.fp16_partitioned_groups_flat_numel
    gradient = optimizer.grad_partitions_flat_buffer.narrow(0, sum(sizes[:number]), sizes[number])
    assert gradient.dtype == torch.float32
    optimizer.fp32_partitioned_groups_flat[number].grad = gradient
    optimizer.averaged_gradients[number] = None


def _grad_norm(optimizer: Any, gradients: list[torch.Tensor], params: list[nn.Parameter], norm_type: int = 2) -> Any:
    """What ZeroOptimizer.get_grad_norm_direct computes: the norm over all ranks, -1 where it is not finite."""
    from deepspeed.runtime.utils import mask_nan_or_inf_with_val_inplace

    assert norm_type == 2
    total = _sum_over_ranks(optimizer, _squares(optimizer, gradients, params))
    norm = total.sqrt().float()
    mask_nan_or_inf_with_val_inplace(norm, device=optimizer.device)
    return norm


def norm_over_stages(engine: Any) -> None:
    """Let the stages of a pipeline add up their gradients' squares once. DeepSpeed does it for each group of
    parameters, but a stage may have fewer groups than another, which then waits for it for ever."""

    def norm(optimizer: Any, norm_type: int = 2) -> torch.Tensor:
        assert norm_type == 2
        squares = torch.zeros((), dtype=torch.float64, device=optimizer.device)
        for group, params in enumerate(optimizer.params_in_partition):
            if optimizer.cpu_offload:
                counted = [optimizer.get_param_id(parameter) for parameter in params if _counts(optimizer, parameter)]
                squares += sum(optimizer.norm_for_param_grads[number].double().square() for number in counted)
            else:
                squares += _squares(optimizer, optimizer.averaged_gradients[group], params)
        found = _sum_over_ranks(optimizer, squares).sqrt().float()
        return torch.where(found.isfinite(), found, torch.inf)

    engine.optimizer.scaled_global_norm = types.MethodType(norm, engine.optimizer)


def _squares(optimizer: Any, gradients: list[torch.Tensor], params: list[nn.Parameter]) -> torch.Tensor:
    """Sum of squares in fp64 of what this rank has of some gradients, and no other rank."""
    total = torch.zeros((), dtype=torch.float64, device=optimizer.device)
    real = (gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False))
    for gradient, parameter in zip(real, params, strict=False):
        if _counts(optimizer, parameter):
            total += sum_of_squares(gradient.detach())
    return total


def _counts(optimizer: Any, parameter: nn.Parameter) -> bool:
    """Whether this rank's part of a parameter enters the norm, rather than that of its tensor-parallel neighbour."""
    from deepspeed.runtime.utils import is_model_parallel_parameter

    return is_model_parallel_parameter(parameter) or optimizer.model_parallel_rank == 0


def _sum_over_ranks(optimizer: Any, total: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(total, group=optimizer.dp_process_group)
    optimizer._model_parallel_all_reduce(tensor=total, op=dist.ReduceOp.SUM)
    return total


def sum_of_squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares in fp64, without an fp64 copy of the values: fp32 within short chunks, fp64 over them.

    Summing many millions of fp32 squares in fp32 is off in the fourth digit.
    """
    chunks = values.reshape(-1).float().split(1 << 16)
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).double().sum()


def bind_optimizer(engine: Any, named: list[tuple[str, nn.Parameter]]) -> None:
    """Tell an optimizer that must know it what each partition holds of which parameter; collective."""
    optimizer = _inner_optimizer(engine)
    if not isinstance(optimizer, ShardedOptimizer):
        return
    names = {id(parameter): name for name, parameter in named}
    zero = engine.optimizer
    stage3 = engine.zero_optimization_stage() == 3
    members = zero.fp16_groups if stage3 else zero.bit16_groups
    for partition, parameters in zip(_partitions(engine), members, strict=True):
        parts = []
        for parameter in parameters:
            start, count, offset = (_range_stage3 if stage3 else _range)(engine, parameter)
            parts.append(Part(names[id(parameter)], shard_of(parameter).shape, start, count, offset))
        optimizer.bind(partition, parts, zero.dp_process_group)


def create_optimizer_state(engine: Any) -> None:
    """Give every partition the state that its first update would create, so that it can be saved and loaded."""
    optimizer = _inner_optimizer(engine)
    for place, partition in enumerate(_partitions(engine)):
        group = place
        if engine.zero_optimization_stage() == 3:
            group = engine.optimizer.sub_group_to_group_id[place]
        create_state(optimizer, partition, optimizer.param_groups[group])


def state_kinds(engine: Any, parameter: nn.Parameter) -> list[str]:
    """What this rank keeps for each element of a parameter: its weight and the optimizer's tensors."""
    place = _partition_of(engine, parameter) if parameter.requires_grad else None
    if place is None:
        return [WEIGHT]
    partition = _partitions(engine)[place]
    state = _inner_optimizer(engine).state[partition]
    return [WEIGHT, *sorted(key for key, value in state.items() if value.shape == partition.shape)]


def _shared_state(engine: Any) -> dict[str, dict[str, torch.Tensor]]:
    """By parameter and kind: the optimizer's tensors that are not of a parameter's shape, whole on every rank."""
    optimizer = _inner_optimizer(engine)
    if not isinstance(optimizer, ShardedOptimizer):
        return {}
    return {part.name: part.shared for partition in _partitions(engine) for part in optimizer.parts(partition)}


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


_SCALING = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def loss_scaling(engine: Any) -> dict[str, float]:
    """In fp16, the factor of the loss and what decides when it changes; empty otherwise."""
    scaler = engine.optimizer.loss_scaler
    return {name: getattr(scaler, name) for name in _SCALING} if scaler.dynamic else {}


def set_loss_scaling(engine: Any, values: dict[str, float]) -> None:
    """Restore what `loss_scaling` gives; without effect where the loss is not scaled."""
    scaler = engine.optimizer.loss_scaler
    for name, value in values.items() if scaler.dynamic else ():
        setattr(scaler, name, value)


def fragments(engine: Any, named: list[tuple[str, nn.Parameter]]) -> Iterator[Fragment]:
    """What this rank owns of every tensor: fp32 masters and optimizer tensors, as views of DeepSpeed's buffers.

    What is the same on several ranks comes from the first alone.
    """
    shared = _shared_state(engine) if dist.get_rank(engine.optimizer.dp_process_group) == 0 else {}
    for name, parameter in named:
        own = shard_of(parameter)
        for kind in state_kinds(engine, parameter) if own.first else []:
            for start, values in _owned(engine, parameter, kind):
                end = start + values.numel()
                yield Fragment(name, kind, own.shape, own.offsets, own.sizes, start, end, values.detach())
        for kind, whole in shared.get(name, {}).items():
            shape = tuple(whole.shape)
            yield Fragment(
                name, kind, own.shape, (0,) * len(shape), shape, 0, whole.numel(), whole.view(-1), kind_shape=shape
            )


@contextlib.contextmanager
def watched_gradients(engine: Any, named: list[tuple[str, nn.Parameter]], seen: list[Fragment]) -> Iterator[None]:
    """Within the block, copy what the optimizer gets: this rank's part of each gradient, summed, unscaled, clipped."""

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        partitions = {id(partition): place for place, partition in enumerate(_partitions(engine))}
        present = {
            partitions[id(partition)]
            for group in optimizer.param_groups
            for partition in group["params"]
            if partition.grad is not None and id(partition) in partitions
        }
        for name, parameter in named:
            own = shard_of(parameter)
            place = _partition_of(engine, parameter) if own.first and parameter.requires_grad else None
            if place is None or place not in present:
                continue
            start, count, offset = (_range_stage3 if hasattr(parameter, "ds_id") else _range)(engine, parameter)
            if not count:
                continue
            gradient = _partitions(engine)[place].grad
            assert gradient is not None
            values = gradient.view(-1).narrow(0, offset, count).float().clone()
            seen.append(Fragment(name, "gradient", own.shape, own.offsets, own.sizes, start, start + count, values))

    handle = _inner_optimizer(engine).register_step_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def load(engine: Any, named: list[tuple[str, nn.Parameter]], read: RangeReader) -> None:
    """Fill what this rank owns from `read`, then refresh the weights that the forward pass uses.

    Never holds more than one tensor's part besides the model.
    """
    shared = _shared_state(engine)
    for name, parameter in named:
        own = shard_of(parameter)
        for kind in state_kinds(engine, parameter):
            for start, values in _owned(engine, parameter, kind):
                values.data.copy_(read(name, kind, own, start, start + values.numel()))
        for kind, whole in shared.get(name, {}).items():
            whole.view(-1).copy_(read(name, kind, Shard.whole(whole.shape), 0, whole.numel()))
    _refresh_weights(engine)


@torch.no_grad()
def fill_masters(engine: Any, named: list[tuple[str, nn.Parameter]], weights: Weights) -> None:
    """Give the fp32 masters that this rank owns their exact values, of which the forward pass has rounded ones."""
    for name, parameter in named:
        if parameter.requires_grad:
            for start, values in _owned(engine, parameter, WEIGHT):
                fill(values.data, weights, name, shard_of(parameter), start)


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer


def _partitions(engine: Any) -> list[torch.Tensor]:
    """The flat fp32 tensors that the optimizer updates."""
    if engine.zero_optimization_stage() == 3:
        return engine.optimizer.fp32_partitioned_groups_flat
    return engine.optimizer.single_partition_of_fp32_groups


def _partition_of(engine: Any, parameter: Any) -> int | None:
    """Which partition holds this rank's part of a trained parameter; None where it owns nothing of it."""
    if hasattr(parameter, "ds_id"):
        return engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)][0]
    return None if parameter._hp_mapping is None else parameter._hp_mapping.param_group_index


def _owned(engine: Any, parameter: Any, kind: str) -> Iterator[tuple[int, torch.Tensor]]:
    """(first element, flat view) of this rank's part of one tensor, without padding; nothing where it owns none."""
    stage3 = hasattr(parameter, "ds_id")
    start, count, offset = (_range_stage3 if stage3 else _range)(engine, parameter)
    if not count:
        return
    if not parameter.requires_grad:
        values = parameter.ds_tensor.data if stage3 else parameter.data
        yield start, values.view(-1)[:count]
        return
    place = _partition_of(engine, parameter)
    assert place is not None
    partition = _partitions(engine)[place]
    values = partition if kind == WEIGHT else _inner_optimizer(engine).state[partition][kind]
    yield start, values.narrow(0, offset, count)


def _range(engine: Any, parameter: Any) -> tuple[int, int, int]:
    """(first element, elements, place in the partition) of this rank's part at stages 1 and 2."""
    if not parameter.requires_grad:
        first = dist.get_rank(_replicas(engine, parameter)) == 0
        return 0, parameter.numel() if first else 0, 0
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, 0, 0
    address = mapping.hp_fragment_address
    return mapping.lp_fragment_address.start, address.numel, address.start


def _replicas(engine: Any, parameter: Any) -> Any:
    """The group of the ranks that have the same parameter and share its state."""
    name = expert_group_of(parameter)
    return engine.optimizer.dp_process_group if name is None else engine.optimizer.expert_dp_process_group[name]


def _range_stage3(engine: Any, parameter: Any) -> tuple[int, int, int]:
    """As `_range`, at stage 3, which cuts each flattened tensor into equal parts, the last ones padded."""
    part = parameter.ds_tensor.ds_numel
    start = part * dist.get_rank(parameter.ds_process_group)
    count = max(0, min(part, parameter.ds_numel - start))
    if not parameter.requires_grad:
        return start, count, 0
    return start, count, engine.optimizer.grad_position[engine.optimizer.get_param_id(parameter)][1]


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
