"""What must fit together in a config whatever its layout: data, objective and architecture."""

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.masked import MaskedObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from llmscale.config import RunConfig

_OBJECTIVES = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "denoising"}
"""The objective that each architecture was made for."""


def require_possible(config: RunConfig) -> None:
    """Refuse what cannot run on any number of ranks.

    Raises:
        UserError: names the fields, both values and the fix.
    """
    _require_possible_data(config)
    _require_architecture(config)
    _require_positions(config)


def _require_possible_data(config: RunConfig) -> None:
    if config.train.epochs is not None and not config.data.finite:
        raise UserError(
            f"train.epochs ({config.train.epochs}) needs data that have an end; set data.order=permutation, or give"
            f" train.steps"
        )
    if config.data.deduplication is not None:
        from data_pipeline.prepare.deduplication import refuse_deduplication_of_a_stream

        refuse_deduplication_of_a_stream(config.data)


def _require_positions(config: RunConfig) -> None:
    name, length = "data.sequence_length", config.data.sequence_length
    positions = config.model.max_positions
    if isinstance(config.objective, Seq2SeqObjective) and config.objective.concatenate:
        name, length = "data.sequence_length + objective.target_length", length + config.objective.target_length
    if length > positions:
        raise UserError(
            f"{name} ({length} tokens) exceeds model.max_positions ({positions});"
            f" set model.max_positions={length} or shorten the sequences"
        )


def _require_architecture(config: RunConfig) -> None:
    """The objective must be one that the model's architecture can learn, and use all heads that it has."""
    objective, model = config.objective, config.model
    name, architecture = objective.name, model.architecture
    if isinstance(objective, Seq2SeqObjective):
        wanted = "decoder" if objective.concatenate else "encoder_decoder"
    else:
        wanted = {"masked": "encoder", "denoising": "encoder_decoder"}.get(name, "decoder")
    other = f"use objective.name={_OBJECTIVES[architecture]}"
    if model.next_sentence:
        other += " and objective.next_sentence=true"
    if isinstance(objective, Seq2SeqObjective) and architecture != "encoder":
        other = f"set objective.concatenate={str(architecture == 'decoder').lower()}"
    if wanted != architecture:
        form = " with concatenate" if isinstance(objective, Seq2SeqObjective) and objective.concatenate else ""
        raise UserError(
            f"objective.name is {name}{form}, which trains {_an(wanted)}, but model.architecture is {architecture};"
            f" {other}, or "
            + (f"a model.family that is {_an(wanted)}" if model.family else f"set model.architecture={wanted}")
        )
    pairs = isinstance(objective, MaskedObjective) and objective.next_sentence
    if pairs != model.next_sentence:
        raise UserError(
            f"objective.next_sentence is {str(pairs).lower()}, but model.next_sentence is"
            f" {str(model.next_sentence).lower()}; set model.next_sentence={str(pairs).lower()}"
            + (" and model.token_types=2" if pairs and model.token_types < 2 else "")
        )
    if config.logging.sample_prompts and architecture == "encoder":
        raise UserError(
            "logging.sample_prompts are given, but model.architecture is encoder, which continues no text;"
            " leave them out"
        )


def _an(architecture: str) -> str:
    return f"{'a' if architecture == 'decoder' else 'an'} {architecture}"
