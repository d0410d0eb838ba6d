"""`llmscale checkpoint merge`: a checkpoint with low-rank factors becomes one without, of the same function."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.durable import temporary_folder
from data_pipeline.base.errors import UserError, writing
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.merge import base_names, merged_tensor, require_same_outputs
from llmscale.checkpoint.reader import newest_intact
from llmscale.checkpoint.whole import write_whole
from llmscale.config import identity, parse_config


def merge(path: Path, out: Path, largest_difference: float | None = None) -> list[str]:
    """Write the checkpoint `out`, of weights alone; it appears whole or not at all.

    Args:
        path: a checkpoint, or a run directory with one.
        largest_difference: see `require_same_outputs`.

    Returns:
        Sentences for the user.

    Raises:
        UserError: no intact checkpoint, one without factors, `out` exists, or merging changes the outputs by too much.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already; name a new folder, or remove it first")
    checkpoint = newest_intact(path)
    given = parse_config(dict(checkpoint.manifest.config), origin=str(checkpoint.path))
    lora = given.model.lora
    if lora is None:
        raise UserError(f"{checkpoint.path} has no low-rank factors to merge; use it as it is")
    said = require_same_outputs(checkpoint, torch.float32, largest_difference)
    raw: dict[str, Any] = given.model_dump(mode="json")
    raw["finetune"], raw["model"]["lora"] = None, None
    config = parse_config(raw, origin=str(checkpoint.path))
    state = RunState(
        samples=0,
        config=config.model_dump(mode="json"),
        identity=identity(config),
        drawn=checkpoint.manifest.drawn,
    )
    files = {file.name: file.read_bytes() for file in checkpoint.tokenizer.iterdir()}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_folder(out.parent, f".tmp-{out.name}-")
        try:
            names = base_names(checkpoint)
            write_whole(temporary, ((name, merged_tensor(checkpoint, name, lora)) for name in names), state, files)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return [f"{out}: {checkpoint.path} with its factors in its weights", said]
