"""What a run that begins from a checkpoint (`train.init_from`) takes over beside the weights."""

from __future__ import annotations

from data_pipeline.errors import UserError
from data_pipeline.tokenizer.chat_files import carry_chat
from llmscale.checkpoint.reader import Checkpoint
from llmscale.checkpoint.store import find_checkpoints
from llmscale.config import RunConfig
from llmscale.train.run_directory import RunDirectory


def inherit_templates(config: RunConfig, run: RunDirectory) -> None:
    """Keep the chat templates of `train.init_from` with the run's tokenizer, which goes into its checkpoints; a run
    that has made progress has them already.

    Raises:
        UserError: they cannot be read.
    """
    if config.train.init_from is None or run.has_progress():
        return
    try:
        # The whole checkpoint is verified where its weights are read.
        theirs = Checkpoint(find_checkpoints(config.train.init_from)[0]).tokenizer
    except (IndexError, UserError):
        return  # that is said there, too
    carry_chat(theirs, run.tokenizer)
