"""What is changed of DeepSpeed from outside: quiet start-up, costs that show on a CPU, the norm of the gradient.

Written against DeepSpeed 0.19.8, which constraints.txt pins; tests/engine holds each of these to plain torch.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmscale.engine.compiling import compiler_on_demand

ROW = 256
"""Values whose squares are summed in fp32; see `sum_of_squares`."""


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without the compilation and the messages that its import and start-up bring.

    On CPU its first collective would otherwise compile a shared-memory extension for most of a minute.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    tell_device(device)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It calls collectives by names that torch 2.13 has replaced, and torch says so at every start.
    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    with compiler_on_demand():
        import deepspeed
        import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cpu":
        # torch computes in fp16 on any CPU, if slowly; DeepSpeed asks for instructions that few have.
        type(deepspeed.get_accelerator()).is_fp16_supported = lambda self: True
        # ZeRO 3 starts the program numactl for it at each reduction of gradients, though it does not change.
        deepspeed.utils.numa.get_numa_cores = functools.cache(deepspeed.utils.numa.get_numa_cores)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def tell_device(device: torch.device) -> None:
    """Let DeepSpeed, which takes LOCAL_RANK for the index of its GPU, use this one.

    It insists on the variable even where a single process needs no launcher.
    """
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index or 0)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")


def import_early(device: torch.device) -> None:
    """Import what engines import when they start, for processes that fork ranks."""
    import_deepspeed(device)
    with compiler_on_demand():
        import deepspeed.module_inject.auto_ep_comm
        import deepspeed.runtime.superoffload.superoffload_stage3
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


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

    DeepSpeed replaces torch's function for good, with all else that the process computes. Its own adds the bias in
    place to a product that selective recomputation keeps, so it is added here.
    """
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        product = zero3_linear_wrap(input, weight)
        return product if bias is None else product + bias

    plain = nn.functional.linear
    nn.functional.linear = linear
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


@contextlib.contextmanager
def backward_without_update(engine: Any) -> Iterator[None]:
    """Within the block, torch.autograd.grad may pass through the model. At ZeRO 3 layers that are brought together as a
    whole would reduce gradients there, and weights stay gathered, which DeepSpeed gives back where the backward pass is
    its own."""
    hooks = []
    for handle in getattr(engine.optimizer, "_leaf_module_hooks", ()):
        theirs = handle.hooks_dict_ref()
        hooks.append((theirs, handle.id, theirs.pop(handle.id)))
    try:
        yield
    finally:
        for theirs, key, hook in hooks:
            theirs[key] = hook
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.parameter_offload.release_backward_leftovers()


def skip_at_the_smallest_scale(engine: Any) -> None:
    """In fp16, let a step that overflows at a factor of 1 be skipped as others are; DeepSpeed would raise there."""
    if engine.optimizer.loss_scaler.dynamic:
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False


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
    """Sum of squares in fp64, without an fp64 copy of the values: fp32 within short rows, fp64 over them.

    In a gradient few values are large, and a long sum in fp32 loses the many small ones beside them: of millions of
    values it is off in the fourth digit, of 65,536 in the fifth.
    """
    flat = values.reshape(-1).float()
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:]).double()
    return rows.square().sum() + rest.square()
