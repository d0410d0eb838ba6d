"""How a Transformer is shared: its modules by tensor-parallel ranks, in one table for all families, and its layers by
the stages of a pipeline.

Module names are those of `llmscale.model`; a `*` stands for any characters. What no row names is whole on every rank
and sees the same on every rank, so that its gradient needs nothing.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of
from llmscale.model.attention.table import Cut
from llmscale.model.heads import all_heads

TENSOR: tuple[tuple[str, Cut], ...] = (
    ("*feed_forward.up", "column"),
    ("*feed_forward.gate", "column"),
    ("*feed_forward.down", "row"),
    ("*relative_bias.table", "heads"),
    ("embedding", "vocabulary"),
    *((f"{head.attribute}.{module}".rstrip("."), cut) for head in all_heads() for module, cut in head.sharding),
)
"""For all modules of a Transformer but those of attention, whose kind says it; heads have their own rows."""

SEQUENCE_PARALLEL: tuple[tuple[str, Cut], ...] = (
    ("*attention_norm", "replicated_sum"),
    ("*feed_forward_norm", "replicated_sum"),
    ("norm", "replicated_sum"),
    ("encoder.norm", "replicated_sum"),
)
"""Besides, where the ranks share the residual stream by positions: what acts on it."""


def cut_of(config: ModelConfig, name: str, sequence_parallel: bool) -> Cut | None:
    """How the module `name` is cut; None: not at all."""
    within, _, part = name.rpartition(".")
    if within.endswith("attention"):
        return table_of(config, cross=within.endswith("cross_attention")).cut_of(part)
    table = TENSOR + (SEQUENCE_PARALLEL if sequence_parallel else ())
    return next((cut for pattern, cut in table if fnmatchcase(name, pattern)), None)


def stage_layers(layers: int, stages: int) -> list[range]:
    """Which layers each stage of a pipeline has, as evenly as they go.

    The layers that are left over go to the stages just before the last, which has the head; earlier stages hold more
    micro batches at a time.
    """
    least, over = divmod(layers, stages)
    found, start = [], 0
    for stage in range(stages):
        end = start + least + (stages - 1 - over <= stage < stages - 1)
        found.append(range(start, end))
        start = end
    return found
