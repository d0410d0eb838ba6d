"""What a run that begins from a checkpoint (`train.init_from`) takes over beside the weights."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.chat_files import carry_chat
from llmscale.checkpoint.members import own_checkpoints, recorded_identity
from llmscale.checkpoint.reader import Checkpoint
from llmscale.checkpoint.store import find_checkpoints
from llmscale.config import RunConfig
from llmscale.train.resume import Resume
from llmscale.train.run_directory import RunDirectory


def drawn_tensors(config: RunConfig, resume: Resume) -> list[str]:
    """Tensors that nobody has trained before this run: what its checkpoints say until a step has been taken."""
    if resume.checkpoint is not None:
        return list(resume.checkpoint.manifest.drawn)
    theirs = begun_from(config)
    return [] if theirs is None else list(theirs.manifest.drawn)


def inherit_templates(config: RunConfig, run: RunDirectory) -> None:
    """Keep the chat templates of `train.init_from` with the run's tokenizer, which goes into its checkpoints; a run
    that has made progress has them already.

    Raises:
        UserError: they cannot be read.
    """
    if not run.has_progress() and (theirs := begun_from(config)) is not None:
        carry_chat(theirs.tokenizer, run.tokenizer)


def begun_from(config: RunConfig) -> Checkpoint | None:
    """The checkpoint of `train.init_from`, which is verified where its weights are read; None without a good one."""
    if config.train.init_from is None:
        return None
    directory = Path(config.train.init_from)
    try:
        if find_checkpoints(directory) == [directory]:
            return Checkpoint(directory)
        own = next(own_checkpoints(directory, recorded_identity(directory)), None)
        return None if own is None else Checkpoint(own[0])
    except UserError:
        return None  # that is said there, too
