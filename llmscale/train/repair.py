"""Small files of a run that are damaged, put back from the verified copies that its checkpoints hold."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from data_pipeline.base.durable import read_file, temporary_folder
from data_pipeline.base.errors import UserError, writing
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.base import META_FILE
from llmscale.checkpoint.manifest import TOKENIZER, FileEntry
from llmscale.checkpoint.members import own_checkpoints
from llmscale.checkpoint.store import discard
from llmscale.config import RunConfig, identity
from llmscale.train.run_directory import RunDirectory


def repair_tokenizer(run: RunDirectory, config: RunConfig) -> str | None:
    """Make the run's tokenizer that of its checkpoints, where one of its files is not.

    Where no checkpoint holds one, a damaged tokenizer goes, so that it is made again of what the config names.

    Returns:
        What was done, in a sentence; None where nothing is wrong.
    """
    for folder, manifest in own_checkpoints(run.checkpoints, identity(config)):
        entries = {Path(name).name: entry for name, entry in manifest.files.items() if name.startswith(f"{TOKENIZER}/")}
        if not entries or not all(_is(folder / TOKENIZER / name, entry) for name, entry in entries.items()):
            continue
        wrong = [name for name, entry in entries.items() if not _is(run.tokenizer / name, entry)]
        if not wrong:
            return None
        _replace(run.tokenizer, [folder / TOKENIZER / name for name in entries])
        return f"{run.tokenizer / wrong[0]} is damaged or missing; {run.tokenizer} is put back from {folder}"
    if not (run.tokenizer / META_FILE).is_file():
        return None
    try:
        load_tokenizer(run.tokenizer)
    except UserError as error:
        discard(run.tokenizer)
        return f"{error}; no checkpoint has a copy, so it is made again"
    return None


def _is(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.bytes and hashlib.sha256(read_file(path)).hexdigest() == entry.sha256
    except OSError:
        return False


def _replace(folder: Path, files: list[Path]) -> None:
    """Fill a folder again; a kill half-way leaves it missing at most."""
    temporary = temporary_folder(folder.parent, f".{folder.name}-")
    try:
        with writing(folder):
            for path in files:
                shutil.copyfile(path, temporary / path.name)
            discard(folder)
            temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
