"""A run under `accelerate launch`."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from data_pipeline.errors import UserError
from llmscale.config import load_config


def launch_accelerate(config: str, overrides: tuple[str, ...], config_file: str) -> NoReturn:
    """Check the config, then replace this process by `accelerate launch --config_file CONFIG_FILE -m llmscale train`.

    Signals and exit codes are then Accelerate's own: any failing rank gives 1, and outcome.json in the run directory
    tells what happened.

    Raises:
        UserError: the config is wrong or `config_file` is missing; nothing was started.
    """
    load_config(config, overrides)
    if not Path(config_file).is_file():
        raise UserError(f"no Accelerate config {config_file}; configs/accelerate/cpu.yaml is one to start from")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_file]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*launch, "-m", "llmscale", "train", config, *overrides])
