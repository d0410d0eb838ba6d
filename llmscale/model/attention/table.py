"""What a kind of attention says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llmscale.config.model import ModelConfig

Cut = Literal["column", "key_value", "row", "vocabulary", "heads", "replicated_sum"]
"""How tensor-parallel ranks share a module's parameters (weights are (outputs, inputs), those of experts (experts,
outputs, inputs)).

column: by outputs, a norm's by what it norms. key_value: by outputs; where there are fewer heads than ranks, several
ranks have the same head. row: weights by inputs, whose products are summed over the ranks; the bias is whole.
vocabulary: by rows. heads: a table (buckets, heads) by heads. replicated_sum: whole on every rank, but it sees what
only this rank has: its gradient is summed over the ranks.
"""


@dataclass(frozen=True)
class Projection:
    """A linear layer of attention."""

    name: str
    """Of the module."""
    inputs: int
    outputs: int
    bias: bool
    cut: Cut
    head: int = 1
    """key_value: outputs of one head."""
    fan_in: int | None = None
    """What `init_scheme: fan_in` takes for its inputs, where that is another number."""
    inner: bool = False
    """Whether it reads what another projection of the layer made, neither the residual stream nor the mixed values."""

    def local(self, ranks: int) -> tuple[int, int]:
        """(outputs, inputs) on one of so many tensor-parallel ranks."""
        outputs, inputs = self.outputs, self.inputs
        match self.cut:
            case "column" | "key_value":
                outputs = max(outputs // ranks, self.head)
            case "row":
                inputs //= ranks
        return outputs, inputs

    def elements(self, ranks: int) -> int:
        """Of weight and bias, on one of so many ranks."""
        outputs, inputs = self.local(ranks)
        return outputs * inputs + self.bias * outputs


@dataclass(frozen=True)
class VectorNorm:
    """An RMSNorm inside attention."""

    name: str
    channels: int
    """Over which it norms: its weight's."""
    cut: Cut
    heads: int = 1
    """Vectors of a token that it norms, where they are heads that ranks share; a rank has at least one."""
    head: int = 1
    """key_value: channels of one head."""

    def elements(self, ranks: int) -> int:
        """Of the weight, on one of so many ranks."""
        shared = self.cut in ("column", "key_value")
        return max(self.channels // ranks, self.head) if shared else self.channels

    def vectors(self, ranks: int) -> int:
        """Vectors of a token on one of so many ranks."""
        return max(self.heads // ranks, 1)


@dataclass(frozen=True)
class AttentionTable:
    """One layer's attention: its tensors, and the heads between them."""

    projections: tuple[Projection, ...]
    norms: tuple[VectorNorm, ...]
    heads: int
    """Of queries."""
    key_heads: int
    """Of keys and values."""
    key_channels: int
    """Of a head of queries or keys."""
    value_channels: int
    """Of a head of values."""
    cache: tuple[tuple[int, int], ...]
    """(heads, channels) of each tensor of a token that generation keeps."""

    def cut_of(self, name: str) -> Cut | None:
        """How the module `name` is shared; None: it has no such module."""
        rows: tuple[Projection | VectorNorm, ...] = (*self.projections, *self.norms)
        return next((row.cut for row in rows if row.name == name), None)

    def local_heads(self, ranks: int) -> tuple[int, int]:
        """Heads of queries, and of keys, on one of so many tensor-parallel ranks."""
        return self.heads // ranks, max(self.key_heads // ranks, 1)


@dataclass(frozen=True)
class AttentionKind:
    """A kind of attention, whose module is `llmscale.model.attention.modules.<name>`."""

    name: str
    is_of: Callable[[ModelConfig], bool]
    """Whether a model has it."""
    table: Callable[[ModelConfig], AttentionTable]
