"""Checkpoints that any layout writes and any other reads. Importing this does not import torch."""

from llmscale.checkpoint.errors import CheckpointError, CorruptCheckpoint
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.checkpoint.store import Retention, clean, find_checkpoints

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CorruptCheckpoint",
    "Retention",
    "clean",
    "find_checkpoints",
    "newest_intact",
]
