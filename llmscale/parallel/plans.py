"""How a Transformer is shared: its modules by tensor-parallel ranks, in one table for all families, and its layers by
the stages of a pipeline.

Module names are those of `llmscale.model`; a `*` stands for any characters. What no row names is whole on every rank
and sees the same on every rank, so that its gradient needs nothing.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from llmscale.config.model import ModelConfig
from llmscale.model.heads import all_heads

Cut = Literal["column", "key_value", "row", "vocabulary", "heads", "replicated_sum"]
"""How a module's parameters are cut (weights are (outputs, inputs), those of experts (experts, outputs, inputs)).

column: by outputs, a norm's by what it norms. key_value: by outputs; where there are fewer heads than ranks, several
ranks have the same head. row: weights by inputs, whose products are summed over the ranks; the bias is whole.
vocabulary: by rows. heads: a table (buckets, heads) by heads. replicated_sum: whole on every rank, but it sees what
only this rank has: its gradient is summed over the ranks.
"""

TENSOR: tuple[tuple[str, Cut], ...] = (
    ("*attention.query", "column"),
    ("*attention.key", "key_value"),
    ("*attention.value", "key_value"),
    ("*attention.output", "row"),
    ("*feed_forward.up", "column"),
    ("*feed_forward.gate", "column"),
    ("*feed_forward.down", "row"),
    ("*relative_bias.table", "heads"),
    ("embedding", "vocabulary"),
    *((f"{head.attribute}.{module}".rstrip("."), cut) for head in all_heads() for module, cut in head.sharding),
)
"""For all modules of a Transformer; heads have their own rows."""

HEAD_NORMS: tuple[tuple[str, Cut], ...] = (
    ("*attention.query_norm", "replicated_sum"),
    ("*attention.key_norm", "replicated_sum"),
)
"""Besides, for norms of each head."""

PROJECTION_NORMS: tuple[tuple[str, Cut], ...] = (
    ("*attention.query_norm", "column"),
    ("*attention.key_norm", "key_value"),
)
"""Besides, for norms of all heads together."""

BY_POSITIONS: tuple[tuple[str, Cut], ...] = (
    ("*attention_norm", "replicated_sum"),
    ("*feed_forward_norm", "replicated_sum"),
    ("norm", "replicated_sum"),
    ("encoder.norm", "replicated_sum"),
)
"""Besides, where the ranks share the residual stream by positions: what acts on it."""


def cut_of(config: ModelConfig, name: str, by_positions: bool) -> Cut | None:
    """How the module `name` is cut; None: not at all."""
    norms = HEAD_NORMS if config.query_key_norm_over == "head" else PROJECTION_NORMS
    table = TENSOR + norms + (BY_POSITIONS if by_positions else ())
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
