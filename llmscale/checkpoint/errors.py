"""What can go wrong with checkpoints."""

from data_pipeline.errors import UserError


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the earlier ones are untouched."""


class CorruptCheckpoint(UserError):
    """A checkpoint on disk is damaged or incomplete; the message names the file and what is wrong with it."""
