"""The modules of a package that each add one thing, found by listing its folder, so that no other file names them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import TypeVar

Base = TypeVar("Base")


def module_names(package: str, besides: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the modules of a package, sorted; `besides` has those that are left out."""
    folders = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(folders) if module.name not in besides))


def modules_of(package: str, besides: Sequence[str] = ()) -> list[ModuleType]:
    """The same modules, imported."""
    return [importlib.import_module(f"{package}.{name}") for name in module_names(package, besides)]


def classes_of(package: str, base: type[Base], besides: Sequence[str] = ()) -> tuple[type[Base], ...]:
    """The subclasses of `base` that these modules define, in the order of the modules and within them."""
    return tuple(
        value
        for module in modules_of(package, besides)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    )
