"""What one sample asks of the model: lengths, masks and targets, from the objective."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.errors import UserError
from data_pipeline.objective_config import (
    CausalObjective,
    DenoisingObjective,
    MaskedObjective,
    PairsObjective,
    PrefixObjective,
)
from llmscale.config import RunConfig

_BYTES = 259
"""Tokens of the bytes tokenizer: pad, bos, eos and the 256 bytes."""


@dataclass(frozen=True)
class Workload:
    """One sample, as the model reads it."""

    vocab_size: int
    """Tokens that the model knows."""
    length: int
    """Tokens of the decoder, or of the encoder where it is alone."""
    memory: int = 0
    """Tokens of the encoder of an encoder-decoder; 0: there is none."""
    targets: float = 1.0
    """Share of the `length` tokens that the head sees."""
    masked: bool = False
    """Whether attention takes a mask: documents kept apart, a prefix, or samples of unequal length."""

    @property
    def tokens(self) -> int:
        """Tokens of a sample that pass through some block."""
        return self.length + self.memory


def workload_of(config: RunConfig) -> Workload:
    """The workload of a run.

    Raises:
        UserError: the vocabulary is known from the tokenizer's file only.
    """
    objective, length = config.objective, config.data.sequence_length
    vocab = vocabulary(config)
    match objective:
        case CausalObjective():
            return Workload(vocab, length, masked=objective.separate_documents)
        case PrefixObjective():
            return Workload(vocab, length, masked=True)
        case MaskedObjective():
            return Workload(vocab, length, targets=objective.rate, masked=objective.next_sentence)
        case DenoisingObjective():
            from data_pipeline.objectives.denoising import noise, window_length

            window = window_length(objective, length)
            cut, spans = noise(objective, window)
            # The encoder's rows are filled up where no window fills them exactly.
            return Workload(vocab, cut + spans + 1, memory=length, masked=window - cut + spans + 1 < length)
        case PairsObjective():
            if objective.concatenate:
                return Workload(vocab, length + objective.target_length, masked=True)
            return Workload(vocab, objective.target_length, memory=length, masked=True)


def vocabulary(config: RunConfig) -> int:
    """Tokens that the model knows, as far as the config alone tells.

    Raises:
        UserError: it does not.
    """
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    tokenizer = config.data.tokenizer
    if tokenizer.kind == "bytes":
        from data_pipeline.objectives import required_roles

        own = {"pad", "bos", "eos"}
        return _BYTES + len(set(required_roles(config.objective, config.data.sequence_length)) - own)
    if tokenizer.path is None:
        return tokenizer.train.vocab_size
    raise UserError(
        f"model.vocab_size is not given, and only the tokenizer's file ({tokenizer.path}) tells it;"
        " set model.vocab_size to the number of its tokens"
    )
