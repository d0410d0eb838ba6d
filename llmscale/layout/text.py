"""Layouts as a user names them: `tp=2,zero=3,dp=2`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, known_keys, parse_config
from llmscale.layout import require_legal

SHORT = {
    "dp": "parallel.data",
    "tp": "parallel.tensor",
    "sequence_parallel": "parallel.sequence_parallel",
    "cp": "parallel.context",
    "pp": "parallel.pipeline",
    "ep": "parallel.expert",
    "zero": "engine.zero_stage",
    "activation_checkpointing": "engine.activation_checkpointing",
    "micro": "train.micro_batch",
    "workers": "data.workers",
}
"""Short names of the settings that make a layout."""
_FREE = ("parallel.", "engine.", "train.micro_batch", "data.workers", "data.prefetch")
"""What may differ between layouts of one run."""


@dataclass(frozen=True)
class LayoutText:
    """A layout by the settings that it gives, and the ranks that it takes."""

    text: str
    overrides: tuple[str, ...]
    ranks: int

    def of(self, config: RunConfig) -> RunConfig:
        """The config in this layout.

        Raises:
            UserError: the layout is not legal for the config; names it.
        """
        try:
            found = parse_config(config.model_dump(mode="json"), self.overrides)
            require_legal(found, self.ranks)
        except UserError as error:
            raise UserError(f"layout {self.text}: {error}") from None
        return found


def parse_layout(text: str) -> LayoutText:
    """A layout such as `tp=2,zero=3,dp=2`; sizes that are not given are 1.

    Raises:
        UserError: an unknown name, or a setting that changes what is learned.
    """
    overrides, sizes = {"parallel.data": "1"}, [1]
    for part in text.split(","):
        name, equals, value = part.partition("=")
        key = SHORT.get(name, name)
        if not equals or not key.startswith(_FREE):
            raise UserError(f"layout '{text}': '{part}' is not one of {', '.join(f'{n}=..' for n in SHORT)}")
        if key not in {known for known, _ in known_keys()}:
            raise UserError(f"layout '{text}': there is no setting {key}; use {', '.join(SHORT)}")
        overrides[key] = value
    for key in ("parallel.data", "parallel.tensor", "parallel.context", "parallel.pipeline"):
        value = overrides.get(key, "1")
        if not value.isdigit() or not int(value):
            raise UserError(f"layout '{text}': {key} is '{value}', but it is a number of ranks, at least 1")
        sizes.append(int(value))
    return LayoutText(text, tuple(f"{key}={value}" for key, value in overrides.items()), math.prod(sizes))
