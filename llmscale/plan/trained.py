"""What a run trains of a rank's parameters: gradients and optimizer state are of these alone."""

from __future__ import annotations

from collections import Counter

from llmscale.config import RunConfig
from llmscale.parallel.plans import stage_layers
from llmscale.plan.parameters import Counts, layers_parameters


def trained_counts(
    config: RunConfig, counts: Counts, *, tensor: int = 1, pipeline: int = 1, stage: int = 0, expert: int = 1
) -> Counts:
    """Elements that one rank trains, by part, as closed forms: of patterns over names, which need the model to be
    looked at, an upper bound, all `counts` of the rank. Arguments as those of `parameters`."""
    settings, model = config.finetune, config.model
    if settings is None:
        return counts
    found: Counts = Counter()
    if settings.lora is not None:
        found["factors"] = counts["factors"]
        if model.experts is not None:
            found["experts"] = counts["experts"]
        if settings.train == "all":
            found["head"] = counts["head"] if model.head is not None else 0
            return found
    if settings.train == "all" or not isinstance(settings.train, str) or settings.redraw:
        return counts
    if settings.train == "encoder":
        if model.architecture == "encoder":
            return Counter({part: 0 if part == "head" else elements for part, elements in counts.items()})
        return found + layers_parameters(model, range(model.encoder_layer_count), False, tensor, expert)
    found["head"] += counts["head"]
    last = max(settings.layers or 0, settings.redraw_layers)
    held = stage_layers(model.layers, pipeline)[stage]
    above = range(max(held.start, model.layers - last), max(held.stop, model.layers - last))
    return found + layers_parameters(model, above, model.architecture == "encoder_decoder", tensor, expert)
