"""Which layouts are legal for a config: one pure, torch-free answer with both values and the nearest legal choice."""

import math

from data_pipeline.errors import UserError
from data_pipeline.objective_config import MaskedObjective, PairsObjective
from llmscale.config import RunConfig
from llmscale.config.system import ParallelConfig

_OBJECTIVES = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "denoising"}
"""The objective that each architecture was made for."""


def require_legal(config: RunConfig, world_size: int) -> None:
    """Refuse what cannot run on `world_size` ranks, before anything is started.

    Raises:
        UserError: names the fields, both values and the nearest legal ones.
    """
    data_parallel = data_parallel_size(config.parallel, world_size)
    _require_batches(config, data_parallel)
    _require_possible_data(config)
    _require_architecture(config)
    _require_positions(config)
    if config.engine.compile and config.engine.zero_stage == 3:
        raise UserError(
            "engine.compile is true, but engine.zero_stage is 3, whose weights are not whole when layers are compiled;"
            " set engine.zero_stage=2 or engine.compile=false"
        )
    if config.engine.recompute == "selective" and config.engine.zero_stage == 3:
        # DeepSpeed's linear layers add the bias in place to the product that would be kept, unseen by torch.
        raise UserError(
            "engine.recompute is selective, but engine.zero_stage is 3, whose linear layers overwrite the results that"
            " would be kept; set engine.recompute=block or engine.zero_stage=2"
        )


def data_parallel_size(parallel: ParallelConfig, world_size: int) -> int:
    """The data-parallel size of a run on `world_size` ranks.

    Raises:
        UserError: the sizes of the layout do not multiply to the number of ranks.
    """
    inner = parallel.pipeline * parallel.sequence * parallel.tensor
    sizes = (("pipeline", parallel.pipeline), ("sequence", parallel.sequence), ("tensor", parallel.tensor))
    others = "".join(f" x parallel.{name} {size}" for name, size in sizes if size > 1)
    if parallel.data is not None and parallel.data * inner != world_size:
        product = f"parallel.data is {parallel.data}" + (f"{others} = {parallel.data * inner}" if others else "")
        raise UserError(
            f"{product}, but the run has {_count(world_size, 'rank')};"
            f" start {_count(parallel.data * inner, 'rank')}, or leave parallel.data out"
        )
    if world_size % inner:
        raise UserError(
            f"the run has {_count(world_size, 'rank')}, which is no multiple of{others.removeprefix(' x')}"
            f"{f' = {inner}' if others.count('x') > 1 else ''}; start {-(-world_size // inner) * inner} ranks"
        )
    return world_size // inner


def _require_batches(config: RunConfig, data_parallel: int) -> None:
    """Every rank must get as many samples of every step as the others, and whole lanes."""
    sizes = {"train.global_batch": config.train.global_batch}
    if not config.data.finite:
        sizes["data.lanes"] = config.data.lanes
    if config.train.batch_ramp is not None:
        sizes["train.batch_ramp.start"] = config.train.batch_ramp.start
        sizes["train.batch_ramp.increment"] = config.train.batch_ramp.increment
    fits = nearest_divisor(math.gcd(*sizes.values()), data_parallel)
    for field, size in sizes.items():
        _require_divides(size, field, data_parallel, fits)


def _require_possible_data(config: RunConfig) -> None:
    if config.train.epochs is not None and not config.data.finite:
        raise UserError(
            f"train.epochs ({config.train.epochs}) needs data that have an end; set data.order=permutation, or give"
            f" train.steps"
        )
    if config.data.deduplication is not None:
        from data_pipeline.cleaning.deduplication import refuse_deduplication_of_a_stream

        refuse_deduplication_of_a_stream(config.data)


def _require_positions(config: RunConfig) -> None:
    name, length = "data.sequence_length", config.data.sequence_length
    positions = config.model.max_positions
    if isinstance(config.objective, PairsObjective) and config.objective.concatenate:
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
    if isinstance(objective, PairsObjective):
        wanted = "decoder" if objective.concatenate else "encoder_decoder"
    else:
        wanted = {"masked": "encoder", "denoising": "encoder_decoder"}.get(name, "decoder")
    other = f"use objective.name={_OBJECTIVES[architecture]}"
    if model.next_sentence:
        other += " and objective.next_sentence=true"
    if isinstance(objective, PairsObjective) and architecture != "encoder":
        other = f"set objective.concatenate={str(architecture == 'decoder').lower()}"
    if wanted != architecture:
        form = " with concatenate" if isinstance(objective, PairsObjective) and objective.concatenate else ""
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


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`; the smaller of two equally near."""
    divisors = [candidate for candidate in range(1, number + 1) if number % candidate == 0]
    return min(divisors, key=lambda candidate: (abs(candidate - wanted), candidate))


def _require_divides(number: int, field: str, data_parallel: int, fits: int) -> None:
    if number % data_parallel:
        up = -(-number // data_parallel) * data_parallel
        raise UserError(
            f"{field} ({number}) must be a multiple of the data-parallel size ({data_parallel});"
            f" use {_count(fits, 'rank')}, or set {field}={up}"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
