"""What a model computes on the way, as numbers that change with every bit: by which two computations are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmscale.model.block import Block

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Fingerprints:
    """The fingerprints of one computation, in its order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """The module that computed it; of a gradient, the module whose output it is of, or the weight."""
        self._sums: list[Tensor] = []

    def add(self, name: str, value: Any) -> None:
        """Note what a module gave: a tensor, or tuples and lists of them; what else there is says nothing."""
        if isinstance(value, (tuple, list)):
            for each in value:
                self.add(name, each)
        elif isinstance(value, Tensor):
            self.names.append(name)
            self._sums.append(fingerprint(value))
            if value.requires_grad:
                value.register_hook(lambda gradient: self._add_gradient(f"the gradient at {name}", gradient))

    def note_weight(self, name: str, gradient: Tensor) -> Tensor:
        """Note the gradient of a weight; zeros that take no memory, to be kept in its place."""
        self._add_gradient(f"the gradient of {name}", gradient)
        return gradient.new_zeros(()).expand_as(gradient)

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        self.names.append(name)
        self._sums.append(fingerprint(gradient))

    def values(self) -> list[int]:
        """One a name."""
        return torch.stack(self._sums).tolist() if self._sums else []


def fingerprint(value: Tensor) -> Tensor:
    """The sum of a tensor's words as integers modulo 2^64, a scalar: another one when any single bit is."""
    flat = value.detach().contiguous().reshape(-1)
    return flat.view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64)


@contextlib.contextmanager
def fingerprints_of(module: nn.Module, compiled: bool, found: Fingerprints) -> Iterator[None]:
    """Within the block, note what each innermost module gives, in its forward pass and as gradient, and the gradients
    of weights, which torch.autograd.grad returns as zeros.

    Args:
        compiled: layers are compiled, so that nothing is noted within them but what they give.
        found: gets them, also of a computation that goes on in a later block.
    """
    hooks = []
    for name, part in _watched(module, compiled):
        hooks.append(part.register_forward_hook(lambda _part, _, output, name=name: found.add(name, output)))
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            hooks.append(weight.register_hook(lambda gradient, name=name: found.note_weight(name, gradient)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gradients(
    value: Tensor, module: nn.Module, given: Tensor | None = None, gradient: Tensor | None = None
) -> Tensor | None:
    """The backward pass of a value through a module, for those who watch it: no weight keeps its gradient.

    Args:
        given: what the value was computed from.
        gradient: of the value; None where that is a scalar.

    Returns:
        The gradient of `given`, where it has one.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    wanted = trained if given is None else [given, *trained]
    if not (value.requires_grad and wanted):
        return None
    found = torch.autograd.grad(value, wanted, gradient, allow_unused=True)
    return None if given is None else found[0]


def _watched(module: nn.Module, compiled: bool, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        innermost = next(child.children(), None) is None
        if innermost or (compiled and isinstance(child, Block)):
            yield path, child
        else:
            yield from _watched(child, compiled, path)


def first_difference(first: Fingerprints, second: Fingerprints) -> tuple[int, str] | None:
    """Where two computations of the same differ first: place and name; None where they agree to the bit."""
    pairs = zip(first.values(), second.values(), second.names, strict=True)
    return next(((place, name) for place, (a, b, name) in enumerate(pairs) if a != b), None)
