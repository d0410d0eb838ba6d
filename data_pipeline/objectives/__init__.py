"""Objectives: how documents become samples, and samples become what a model reads and must predict."""

from __future__ import annotations

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.objective import Arrays, Objective, ObjectiveSettings
from data_pipeline.tokenizer import Tokenizer

__all__ = ["Arrays", "Objective", "ObjectiveSettings", "build_objective"]


def build_objective(config: ObjectiveSettings, tokenizer: Tokenizer, sequence_length: int, seed: int) -> Objective:
    """The objective that a config names, over a tokenizer that has the roles that the config needs.

    Raises:
        UserError: `sequence_length` has no room for a text beside the objective's own tokens.
    """
    least = config.least_length
    if sequence_length < least:
        raise UserError(
            f"data.sequence_length is {sequence_length}, but objective {config.name} needs {least} at least for its own"
            f" tokens and some text; raise it"
        )
    return config.build(tokenizer, sequence_length, seed)
