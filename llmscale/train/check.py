"""What can be known of a run before anything slow is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmscale.config import RunConfig, load_config, resolve_directory
from llmscale.distributed.ranks import planned_ranks
from llmscale.layout import given_ranks, require_legal
from llmscale.train.trackers import require_trackers


def checked_config(path: Path, overrides: tuple[str, ...], tell: Callable[[str], None] | None = None) -> RunConfig:
    """The config of a file, as `require_runnable` returns it; `tell` as `load_config` takes it."""
    return require_runnable(load_config(path, overrides, tell))


def require_runnable(config: RunConfig) -> RunConfig:
    """The config with its run directory resolved, when nothing is wrong with it that shows without data and torch.

    It must be legal for WORLD_SIZE ranks; where no launcher has set that, for as many as the sizes under `parallel`
    multiply to.

    Raises:
        UserError: a setting is wrong.
    """
    config = resolve_directory(config)
    require_legal(config, planned_ranks() or given_ranks(config.parallel))
    require_trackers(config)
    return config
