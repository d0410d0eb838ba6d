"""Names of low-rank factors, and which linear layers have them; without torch, since plans ask too."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from data_pipeline.base.errors import UserError

DOWN, UP, MAGNITUDE = "lora_a", "lora_b", "magnitude"
FACTORS = (DOWN, UP, MAGNITUDE)
"""The parameters of a layer that are factors, by their names in it."""
_WORDS = {
    "all": lambda name: True,
    "attention": lambda name: name.rpartition(".")[0].endswith("attention"),
    "feed_forward": lambda name: name.rpartition(".")[0].endswith("feed_forward"),
}
"""Targets that stand for a part of each block."""
_SHOWN = 3
"""Names that a refusal offers."""


def is_factor(name: str) -> bool:
    """Whether a tensor's canonical name is that of a factor or magnitude."""
    return name.rpartition(".")[2] in FACTORS


def targeted(targets: Iterable[str], layers: Iterable[str]) -> set[str]:
    """Those of the layers, by canonical name, that targets name.

    Raises:
        UserError: one of them names none.
    """
    layers, found = list(layers), set()
    for target in targets:
        matches = _WORDS.get(target, lambda name, target=target: _matches(name, target))  # type: ignore[misc]
        own = {name for name in layers if matches(name)}
        if not own:
            known = sorted({*layers, *(part for name in layers for part in name.split(".")[-2:]), *_WORDS})
            near = difflib.get_close_matches(target.replace("*", ""), known, n=_SHOWN, cutoff=0.4) or known[:_SHOWN]
            raise UserError(
                f"finetune.lora.targets has {target!r}, which matches no linear layer of the model's blocks; the"
                f" nearest are {', '.join(near)}"
            )
        found |= own
    return found


def _matches(name: str, target: str) -> bool:
    module, _, last = name.rpartition(".")
    inside = fnmatchcase(name, f"{target}.*") or module.rpartition(".")[2] == target
    return fnmatchcase(name, target) or last == target or inside
