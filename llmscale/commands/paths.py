"""Paths on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class _Path(click.Path):
    """A path that is not empty: a shell variable that is not set would otherwise be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; give one, and look whether a shell variable is not set", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
"""Of an option or argument."""
