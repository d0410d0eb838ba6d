"""Objectives: how documents become samples, and samples become what a model reads and must predict."""

from __future__ import annotations

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.causal import FIM_ROLES, Causal, Prefix
from data_pipeline.objectives.config import (
    CausalObjective,
    DenoisingObjective,
    MaskedObjective,
    ObjectiveConfig,
    PairsObjective,
    PrefixObjective,
)
from data_pipeline.objectives.denoising import Denoising, denoising_roles
from data_pipeline.objectives.masked import Masked
from data_pipeline.objectives.objective import Arrays, Objective
from data_pipeline.objectives.pairs import Pairs
from data_pipeline.tokenizer import Tokenizer

__all__ = ["Arrays", "Objective", "build_objective", "required_roles"]


def build_objective(config: ObjectiveConfig, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Objective:
    """The objective that a config names, over a tokenizer that has the roles of `required_roles`.

    Raises:
        UserError: `sequence_length` has no room for a text beside the objective's own tokens.
    """
    least = _least_length(config)
    if sequence_length < least:
        raise UserError(
            f"data.sequence_length is {sequence_length}, but objective {config.name} needs {least} at least for its own"
            f" tokens and some text; raise it"
        )
    match config:
        case CausalObjective():
            return Causal(config, tokenizer, sequence_length, seed)
        case PrefixObjective():
            return Prefix(config, tokenizer, sequence_length, seed)
        case MaskedObjective():
            return Masked(config, tokenizer, sequence_length, seed)
        case DenoisingObjective():
            return Denoising(config, tokenizer, sequence_length, seed)
        case PairsObjective():
            return Pairs(config, tokenizer, sequence_length)


def _least_length(config: ObjectiveConfig) -> int:
    match config:
        case MaskedObjective():
            return 5 if config.next_sentence else 3
        case DenoisingObjective():
            return 3
        case _:
            return 1


def required_roles(config: ObjectiveConfig, sequence_length: int) -> tuple[str, ...]:
    """Tokens that an objective needs, by role, besides eos: what `prepare_tokenizer` adds where they are missing."""
    match config:
        case CausalObjective():
            return FIM_ROLES if config.fim_rate else ()
        case PrefixObjective():
            return ()
        case MaskedObjective():
            return Masked.roles
        case DenoisingObjective():
            return denoising_roles(config, sequence_length)
        case PairsObjective():
            return Pairs.roles
