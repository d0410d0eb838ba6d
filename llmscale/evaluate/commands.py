"""`llmscale eval`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.records import strict
from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import EvaluationSet, build_evaluation_set
from data_pipeline.sources.readers import by_reason
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.evaluate.heldout import evaluate, told
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.sources import Given, evaluation_sources
from llmscale.objectives import model_side
from llmscale.objectives.loss import build_loss


def evaluate_files(
    checkpoint: Path,
    files: tuple[str, ...],
    batch: int,
    as_json: bool,
    given: Given = Given(),  # noqa: B008
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    limit: int | None = None,
) -> None:
    """Print the held-out figures of a checkpoint on files: on what `evaluation_sources` takes them for.

    Args:
        device, dtype: where the model computes, and as what.
        limit: most samples, evenly of all that the files are cut into.

    Raises:
        UserError: no intact checkpoint, no such file, or files that the model's objective cannot be evaluated on.
    """
    trained = load_model(checkpoint, device, dtype)
    figures, documents = figures_on(trained, files, batch, given, device, limit)
    for warning in documents.met.warnings(trained.config.data.bad_record_warning):
        click.echo(warning, err=True)
    if as_json:
        row = {"checkpoint": str(trained.checkpoint.path), **figures, "dropped": documents.dropped}
        click.echo(json.dumps(strict(row), allow_nan=False))
        return
    dropped = by_reason(documents.dropped)
    click.echo(f"{trained.checkpoint.path}: {told(figures)}{'; dropped or repaired: ' if dropped else ''}{dropped})")


def figures_on(
    trained: TrainedModel,
    files: tuple[str, ...],
    batch: int,
    given: Given = Given(),  # noqa: B008
    device: torch.device | str = "cpu",
    limit: int | None = None,
) -> tuple[dict[str, Any], EvaluationSet]:
    """The held-out figures of a model on files, and what was read of these.

    Args:
        device: where the model is.
        limit: as `evaluate_files`.

    Raises:
        UserError: as `evaluate_files`.
    """
    sources = evaluation_sources(trained.config, files, given)
    data = DataConfig(
        sources=sources,
        evaluation=sources,
        sequence_length=trained.config.data.sequence_length,
        holdout=0,
    )
    objective = trained.config.objective
    loss = build_loss(objective, trained.config.model)
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        # The run's seed, so that what an objective hides or cuts out is what the run's own evaluation did.
        documents = build_evaluation_set(
            data,
            trained.tokenizer,
            Path(cache),
            objective=objective,
            seed=trained.config.run.seed,
            where="--data",
        )
        _annotate(documents, trained, torch.device(device))
        kept = [0, *range(len(loss.terms), len(loss.terms) + len(loss.measures))]
        figures = evaluate(
            lambda part: loss(trained.model, part.to(device))[kept].tolist(),
            documents,
            batch,
            max_samples=limit,
            measures=loss.measures,
            text=loss.heads[0].per_token,
            shared=loss.shared,
        )
    assert figures is not None
    return figures, documents


def _annotate(documents: EvaluationSet, trained: TrainedModel, device: torch.device) -> None:
    """Let the set say what the reference of the model's objective makes of each sample, where it compares with one.

    Raises:
        UserError: the reference is not there any more.
    """
    named = model_side(trained.config.objective).reference(trained.config)
    if named is None:
        return
    from llmscale.objectives.preference_loss import REFERENCE, answer_sums, scored

    option, path = named
    try:
        reference = place_whole(path, device, torch.float32)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None

    def annotate(batch: Batch) -> Batch:
        asked = scored(batch)
        sums = answer_sums(asked, reference.scoring.score(asked)[0])
        return replace(batch, labels={**batch.labels, REFERENCE: sums})

    documents.annotate = annotate
