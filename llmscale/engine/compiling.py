"""torch.compile: what it is asked to compile, and how those who ask for nothing start without it.

Importing the compiler takes seconds of each process. torch and DeepSpeed do so to keep it out of some functions, and
DeepSpeed to decorate an optimizer that nobody here uses.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from llmscale.model.block import Block
from llmscale.model.uncompiled import COMPILER, keep_out_later, keep_out_now, uncompiled

_Optimizer = TypeVar("_Optimizer", bound=torch.optim.Optimizer)


def compile_blocks(model: nn.Module) -> None:
    """Compile each layer in place, so that names and parameters stay; equal layers share their compiled code."""
    keep_out_now()
    for module in model.modules():
        if isinstance(module, Block):
            # Only what is within, so that ZeRO 3's hooks around it stay outside.
            module.forward = torch.compile(module.forward)  # type: ignore[method-assign]


@contextlib.contextmanager
def compiler_on_demand() -> Iterator[None]:
    """Within the block, what is decorated with torch.compile is compiled when it is first called, and what is kept out
    of the compiler, then or by torch's optimizers, imports it only where something is compiled."""
    if COMPILER in sys.modules:
        yield
        return
    optimizer = torch.optim.Optimizer
    for method in (optimizer.add_param_group, optimizer.load_state_dict, optimizer.state_dict, optimizer.zero_grad):
        keep_out_later(method)
    kept = torch.compile, torch.compiler.disable, torch._disable_dynamo
    torch.compile = _compile_later  # type: ignore[assignment]
    torch.compiler.disable = torch._disable_dynamo = _disabled  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile, torch.compiler.disable, torch._disable_dynamo = kept


def without_compiler(optimizer: type[_Optimizer]) -> type[_Optimizer]:
    """One of torch's optimizers whose step does not ask torch's compiler for breaks of the graph around it."""
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {"step": step})


def _disabled(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    if function is None:
        return functools.partial(_disabled, recursive=recursive)
    return uncompiled(function, recursive)


_compile = torch.compile


def _compile_later(function: Any = None, **options: Any) -> Callable[..., Any]:
    if function is None:
        return functools.partial(_compile_later, **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(_compile(function, **options))
        return compiled[0](*args, **kwargs)

    compiled: list[Any] = []
    return call
