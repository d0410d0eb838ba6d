"""What must fit together in a config whatever its layout: data, objective and architecture."""

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.model.heads import heads_of
from llmscale.objectives import model_side, settings_for


def require_possible(config: RunConfig) -> None:
    """Refuse what cannot run on any number of ranks.

    Raises:
        UserError: names the fields, both values and the fix.
    """
    _require_possible_data(config)
    _require_architecture(config)
    _require_positions(config)
    _require_whole_batches(config)


def _require_whole_batches(config: RunConfig) -> None:
    """What compares the samples of a global batch needs several, and passes over each twice."""
    name, least = config.objective.name, model_side(config.objective).least_batch
    ramp = config.train.batch_ramp
    batches = {"train.global_batch": config.train.global_batch}
    batches |= {"train.batch_ramp.start": ramp.start} if ramp else {}
    for setting, size in batches.items():
        if size < least:
            raise UserError(
                f"{setting} is {size}, but objective {name} compares each sample with the others of its global batch;"
                f" set it to {least} or more, or give hard negatives (objective.negatives)"
            )
    if any(head.whole_batch for head in heads_of(config.model)) and not config.engine.dropout_layout_free:
        raise UserError(
            f"engine.dropout_layout_free is false, but objective {name} passes over each sample twice, which must drop"
            f" the same; set engine.dropout_layout_free=true"
        )


def _require_possible_data(config: RunConfig) -> None:
    if config.train.epochs is not None and not config.data.finite:
        raise UserError(
            f"train.epochs ({config.train.epochs}) needs data that have an end; set data.order=finite, or give"
            f" train.steps"
        )
    if config.data.deduplication is not None:
        from data_pipeline.prepare.deduplication import refuse_deduplication_of_a_stream

        refuse_deduplication_of_a_stream(config.data)


def _require_positions(config: RunConfig) -> None:
    name, length = model_side(config.objective).lengths(config.data.sequence_length)[0]
    positions = config.model.max_positions
    if length > positions:
        raise UserError(
            f"{name} ({length} tokens) exceeds model.max_positions ({positions});"
            f" set model.max_positions={length} or shorten the sequences"
        )


def _require_architecture(config: RunConfig) -> None:
    """The objective must be one that the model's architecture can learn, and use all heads that it has."""
    model, objective = config.model, model_side(config.objective)
    architecture, wanted = model.architecture, " or ".join(map(_an, objective.architectures))
    if architecture not in objective.architectures:
        others = (
            f"objective.{key}={_written(value)}"
            for key, value in settings_for(model.model_copy(update={"head": None})).items()
        )
        other = objective.instead(architecture) or f"use {' and '.join(others)}"
        raise UserError(
            f"objective.name is {objective.form}, which trains {wanted}, but model.architecture is {architecture};"
            f" {other}, or "
            + (
                f"a model.family that is {wanted}"
                if model.family
                else f"set model.architecture={objective.architectures[0]}"
            )
        )
    mismatch = objective.mismatch(model) or objective.impossible(config)
    if mismatch is not None:
        raise UserError(mismatch)
    if objective.predicts(model) != model.predicts:
        raise UserError(
            f"objective.name is {objective.form}, which trains the head {' and '.join(objective.predicts(model))}, but"
            f" the model has {' and '.join(model.predicts)}; leave out model.head, which the objective sets"
        )
    if config.logging.sample_prompts and (why := model.cannot_generate):
        raise UserError(f"logging.sample_prompts are given, but {why}, which continues no text; leave them out")


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _an(architecture: str) -> str:
    return f"{'a' if architecture == 'decoder' else 'an'} {architecture}"
