"""How probable a model says that a text is: one file for each way."""

from __future__ import annotations

from functools import cache

from data_pipeline.base.errors import UserError
from data_pipeline.base.modules import classes_of
from data_pipeline.objectives.config import ObjectiveConfig
from llmscale.config import ModelConfig
from llmscale.evaluate.scorers.scorer import Length, Overflow, Scorer

__all__ = ["Length", "Overflow", "Scorer", "scorer_for", "scorers"]


@cache
def scorers() -> dict[str, type[Scorer]]:
    """All scorers by name: those of the files of this folder."""
    return {kind.name: kind for kind in classes_of(__name__, Scorer, besides=("scorer",))}


def scorer_for(model: ModelConfig, objective: ObjectiveConfig, name: str | None = None) -> type[Scorer]:
    """The scorer of that name, or the one that suits the model best.

    Raises:
        UserError: there is none of that name, or it does not fit the model.
    """
    fitting = {each: scorer for each, scorer in scorers().items() if scorer.fits(model, objective)}
    if name is None:
        return max(fitting.values(), key=lambda scorer: scorer.fits(model, objective))
    if name not in fitting:
        raise UserError(
            f"scorer is {name!r}, but for this {model.architecture} it must be one of {', '.join(sorted(fitting))}"
        )
    return fitting[name]
