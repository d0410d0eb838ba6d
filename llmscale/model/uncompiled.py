"""Functions that torch's compiler must not enter, which do not import it where nothing is compiled."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

COMPILER = "torch._dynamo"
_KEPT_OUT = "__dynamo_disable"
"""Where torch._compile keeps what it calls in place of a function that the compiler must not enter."""
_Function = TypeVar("_Function", bound=Callable[..., Any])
_later: list[Callable[..., Any]] = []
"""Functions that run as they are until there is a compiler."""
_disable = torch._compile._disable_dynamo


def uncompiled(function: _Function, recursive: bool = True) -> _Function:
    """As torch.compiler.disable, which imports the compiler at once, where torch's own decorator does so when the
    function is first called."""
    return keep_out_later(_disable(function, recursive))


def keep_out_later(decorated: Any) -> Any:
    """Let a function that torch has decorated so run as it is for as long as there is no compiler to keep out."""
    function = decorated.__wrapped__

    def call(*args: Any, **kwargs: Any) -> Any:
        if COMPILER not in sys.modules:
            return function(*args, **kwargs)
        keep_out_now()
        return decorated(*args, **kwargs)

    setattr(function, _KEPT_OUT, call)
    _later.append(function)
    return decorated


def keep_out_now() -> None:
    """From now on keep the compiler out in torch's own way, which imports it."""
    while _later:
        function = _later.pop()
        if hasattr(function, _KEPT_OUT):
            delattr(function, _KEPT_OUT)
