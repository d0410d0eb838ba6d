"""A run under `accelerate launch`."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import yaml

from data_pipeline.base.durable import read_text
from data_pipeline.base.errors import UserError
from llmscale.config import load_config
from llmscale.config.yaml_files import load_yaml
from llmscale.layout import require_legal, require_possible


def launch_accelerate(config: str, overrides: tuple[str, ...], config_file: str) -> NoReturn:
    """Check the config, then replace this process by `accelerate launch --config_file CONFIG_FILE -m llmscale train`.

    Signals and exit codes are then Accelerate's own: any failing rank gives 1, and outcome.json in the run directory
    tells what happened.

    Raises:
        UserError: the config is wrong, or illegal for the number of ranks that `config_file` gives, or that file is
            missing or no YAML; nothing was started.
    """
    resolved = load_config(config, overrides)
    ranks = _ranks(Path(config_file))
    if ranks is None:
        # Accelerate itself decides how many; each rank checks the layout when it starts.
        require_possible(resolved)
    else:
        require_legal(resolved, ranks)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*launch, "-m", "llmscale", "train", config, *overrides])


def _ranks(config_file: Path) -> int | None:
    """The number of ranks in an Accelerate config; None where it gives none."""
    try:
        settings = load_yaml(read_text(config_file))
    except FileNotFoundError:
        raise UserError(
            f"no Accelerate config {config_file}; configs/accelerate/cpu.yaml is one to start from"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid YAML"
        raise UserError(f"cannot read Accelerate config {config_file}: {reason}") from None
    ranks = settings.get("num_processes") if isinstance(settings, dict) else None
    return ranks if isinstance(ranks, int) and ranks > 0 else None
