"""What one sample asks of the model: lengths, masks and targets, from the objective."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.denoising import DenoisingObjective
from data_pipeline.objectives.masked import MaskedObjective
from data_pipeline.objectives.prefix import PrefixObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
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
        UserError: the vocabulary is known from the tokenizer's file only, which is not there.
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
        case Seq2SeqObjective():
            if objective.concatenate:
                return Workload(vocab, length + objective.target_length, masked=True)
            return Workload(vocab, objective.target_length, memory=length, masked=True)
    raise AssertionError(objective.name)


def vocabulary(config: RunConfig) -> int:
    """Tokens that the model knows, as the config tells, or the tokenizer's file where it is there.

    Raises:
        UserError: neither does.
    """
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    tokenizer = config.data.tokenizer
    if tokenizer.path is None and tokenizer.kind != "bytes":
        return tokenizer.train.vocab_size
    from data_pipeline.objectives import required_roles

    roles = required_roles(config.objective, config.data.sequence_length)
    if tokenizer.kind == "bytes":
        return _BYTES + len(set(roles) - {"pad", "bos", "eos"})
    assert tokenizer.path is not None
    if Path(tokenizer.path).is_file():
        from data_pipeline.tokenizer import prepare_tokenizer

        with tempfile.TemporaryDirectory() as folder:
            return prepare_tokenizer(config.data, Path(folder) / "tokenizer", roles=roles).vocab_size
    raise UserError(
        f"model.vocab_size is not given, and the tokenizer's file ({tokenizer.path}), which tells it, is not there;"
        " set model.vocab_size to the number of its tokens"
    )
