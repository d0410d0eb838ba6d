"""What one sample asks of the model: lengths, masks and targets, from the objective."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.objectives import model_side


@dataclass(frozen=True)
class Workload:
    """One sample, as the model reads it."""

    vocab_size: int
    """Tokens that the model knows."""
    length: int
    """As in `llmscale.objectives.Shape`, as the others."""
    memory: int = 0
    targets: float = 1.0
    masked: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a sample that pass through some block."""
        return self.length + self.memory


def workload_of(config: RunConfig) -> Workload:
    """The workload of a run.

    Raises:
        UserError: the vocabulary is known from the tokenizer's file only, which is not there.
    """
    return Workload(vocabulary(config), *model_side(config.objective).shape(config.data.sequence_length))


def vocabulary(config: RunConfig) -> int:
    """Tokens that the model knows, as the config tells, or the tokenizer's file where it is there.

    Raises:
        UserError: neither does.
    """
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    tokenizer = config.data.tokenizer
    if tokenizer.path is None and tokenizer.about.trained:
        return tokenizer.train.vocab_size
    if tokenizer.path is None or Path(tokenizer.path).is_file():
        from data_pipeline.tokenizer import prepare_tokenizer

        roles = config.objective.roles(config.data.sequence_length)
        with tempfile.TemporaryDirectory() as folder:
            return prepare_tokenizer(config.data, Path(folder) / "tokenizer", roles=roles).vocab_size
    raise UserError(
        f"model.vocab_size is not given, and the tokenizer's file ({tokenizer.path}), which tells it, is not there;"
        " set model.vocab_size to the number of its tokens"
    )
