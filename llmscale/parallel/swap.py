"""Giving a module of a model other methods, from outside."""

from __future__ import annotations

from typing import Any

from torch import nn

_COMBINED: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
"""One class for all equal modules, so that what is compiled for one serves the others."""


def mix_in(module: nn.Module, kind: type[nn.Module], **attributes: Any) -> None:
    """Let the methods of `kind`, a subclass of a class that the module is of, come before the module's own.

    Another class rather than a wrapper, which would change the names of parameters.
    """
    own = type(module)
    if (kind, own) not in _COMBINED:
        _COMBINED[kind, own] = (
            kind if issubclass(kind, own) else type(f"{kind.__name__}{own.__name__}", (kind, own), {})
        )
    module.__class__ = _COMBINED[kind, own]
    for name, value in attributes.items():
        setattr(module, name, value)
