"""The state of each parameter inside DeepSpeed: which part of weights, gradients and moments this rank has, and where.

Written against DeepSpeed 0.19.8, as `llmscale.engine.deepspeed.shims` is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmscale.engine.deepspeed.experts import expert_group_of
from llmscale.engine.optimizers import Part, ShardedOptimizer, create_state
from llmscale.parallel.init import Weights, fill
from llmscale.parallel.parameters import slice_of
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice

WEIGHT, GRADIENT = "weight", "gradient"
SliceReader = Callable[[str, str, TensorSlice], torch.Tensor]
"""Reads the fp32 values of a slice of a global tensor: (name, kind, slice)."""


def bind_optimizer(engine: Any, named: list[tuple[str, nn.Parameter]]) -> None:
    """Tell an optimizer that must know it what each partition holds of which parameter; collective."""
    optimizer = _inner_optimizer(engine)
    if not isinstance(optimizer, ShardedOptimizer):
        return
    names = {id(parameter): name for name, parameter in named}
    zero = engine.optimizer
    members = zero.fp16_groups if engine.zero_optimization_stage() == 3 else zero.bit16_groups
    for partition, parameters in zip(_partitions(engine), members, strict=True):
        parts = []
        for parameter in parameters:
            parts.append(Part(names[id(parameter)], *_range(engine, parameter)))
        optimizer.bind(partition, parts, zero.dp_process_group)


def create_optimizer_state(engine: Any, name: str) -> None:
    """Give every partition the state that the first update of optimizer `name` would create, so that it can be saved
    and loaded."""
    optimizer = _inner_optimizer(engine)
    for place, partition in enumerate(_partitions(engine)):
        group = place
        if engine.zero_optimization_stage() == 3:
            group = engine.optimizer.sub_group_to_group_id[place]
        create_state(name, optimizer, partition, optimizer.param_groups[group])


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
        for kind in state_kinds(engine, parameter) if slice_of(parameter).first else []:
            for own, values in _owned(engine, parameter, kind):
                yield Fragment(name, kind, own, values.detach())
        for kind, whole in shared.get(name, {}).items():
            yield Fragment(name, kind, TensorSlice.whole(whole.shape), whole.view(-1), slice_of(parameter).shape)


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
            first = slice_of(parameter).first
            if not (first and parameter.requires_grad) or _partition_of(engine, parameter) not in present:
                continue
            for own, values in _owned(engine, parameter, GRADIENT):
                seen.append(Fragment(name, GRADIENT, own, values.float().clone()))

    handle = _inner_optimizer(engine).register_step_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def load(engine: Any, named: list[tuple[str, nn.Parameter]], read: SliceReader) -> None:
    """Fill what this rank owns from `read`, then refresh the weights that the forward pass uses.

    Never holds more than one tensor's part besides the model.
    """
    shared = _shared_state(engine)
    for name, parameter in named:
        if not parameter.requires_grad:
            _fill_frozen(engine, parameter, partial(read, name, WEIGHT))
            continue
        for kind in state_kinds(engine, parameter):
            for own, values in _owned(engine, parameter, kind):
                values.data.copy_(read(name, kind, own))
        for kind, whole in shared.get(name, {}).items():
            whole.view(-1).copy_(read(name, kind, TensorSlice.whole(whole.shape)))
    _refresh_weights(engine)


@torch.no_grad()
def fill_masters(engine: Any, named: list[tuple[str, nn.Parameter]], weights: Weights) -> None:
    """Give the fp32 masters that this rank owns their exact values, of which the forward pass has rounded ones."""
    for name, parameter in named:
        if not parameter.requires_grad:
            _fill_frozen(engine, parameter, partial(_filled, weights, name))
            continue
        for own, values in _owned(engine, parameter, WEIGHT):
            fill(values.data, weights, name, own)


def _filled(weights: Weights, name: str, part: TensorSlice) -> torch.Tensor:
    values = torch.empty(part.numel)
    fill(values, weights, name, part)
    return values


def _fill_frozen(engine: Any, parameter: Any, read: Callable[[TensorSlice], torch.Tensor]) -> None:
    """Give a frozen parameter its values: below ZeRO 3 all of them on every rank, since no update ever brings them
    there. Where rounding them to the arithmetic of the passes loses something, this rank's part of them is kept in fp32
    on the CPU, so that checkpoints have what the run has started from."""
    own, _ = _range(engine, parameter)
    if hasattr(parameter, "ds_id"):
        exact = read(own)
        rounded = parameter.ds_tensor.data.view(-1)[: own.numel].copy_(exact)
    else:
        whole = read(slice_of(parameter))
        parameter.data.view(-1).copy_(whole)
        exact, rounded = (values[own.start : own.end] for values in (whole, parameter.data.view(-1)))
    lossy = rounded.dtype != torch.float32 and not torch.equal(rounded.float().cpu(), exact.float().cpu())
    parameter.exact = exact.float().cpu().clone() if lossy else None


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


def _owned(engine: Any, parameter: Any, kind: str) -> Iterator[tuple[TensorSlice, torch.Tensor]]:
    """The slice of one tensor that this rank owns, and a view of its values; nothing where it owns none."""
    own, offset = _range(engine, parameter)
    if not own.numel:
        return
    if not parameter.requires_grad:
        yield own, _frozen(parameter, own)
        return
    place = _partition_of(engine, parameter)
    assert place is not None
    partition = _partitions(engine)[place]
    if kind == GRADIENT:
        assert partition.grad is not None
        values = partition.grad.view(-1)
    else:
        values = partition if kind == WEIGHT else _inner_optimizer(engine).state[partition][kind]
    yield own, values.narrow(0, offset, own.numel)


def _frozen(parameter: Any, own: TensorSlice) -> torch.Tensor:
    """This rank's part of a frozen parameter, in fp32."""
    exact = getattr(parameter, "exact", None)
    if exact is not None:
        return exact
    if hasattr(parameter, "ds_id"):
        return parameter.ds_tensor.data.view(-1)[: own.numel].float()
    return parameter.data.view(-1)[own.start : own.end].float()


def _range(engine: Any, parameter: Any) -> tuple[TensorSlice, int]:
    """This rank's part, and its place in the partition."""
    rectangle = slice_of(parameter)
    if hasattr(parameter, "ds_id"):
        # Stage 3 cuts each flattened tensor into equal parts, the last ones padded.
        own = rectangle.chunk(dist.get_rank(parameter.ds_process_group), parameter.ds_tensor.ds_numel)
        positions = engine.optimizer.grad_position
        return own, positions[engine.optimizer.get_param_id(parameter)][1] if parameter.requires_grad else 0
    if not parameter.requires_grad:
        # Nobody owns it: each writes a share to checkpoints.
        group = _replicas(engine, parameter)
        return rectangle.chunk(dist.get_rank(group), -(-parameter.numel() // dist.get_world_size(group))), 0
    mapping = parameter._hp_mapping
    if mapping is None:
        return rectangle.flat_range(0, 0), 0
    start, address = mapping.lp_fragment_address.start, mapping.hp_fragment_address
    return rectangle.flat_range(start, start + address.numel), address.start


def _replicas(engine: Any, parameter: Any) -> Any:
    """The group of the ranks that have the same parameter and share its state."""
    name = expert_group_of(parameter)
    return engine.optimizer.dp_process_group if name is None else engine.optimizer.expert_dp_process_group[name]


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
