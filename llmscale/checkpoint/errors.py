"""What can go wrong with checkpoints."""

from data_pipeline.base.errors import UserError


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the earlier ones are untouched."""


class NotFiniteError(CheckpointError):
    """A tensor that is to be saved holds NaN or Inf; the message is which one."""


class CorruptCheckpoint(UserError):
    """A checkpoint on disk is damaged or incomplete, or holds NaN or Inf; the message names the file and what is wrong
    with it."""
