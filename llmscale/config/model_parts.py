"""Parts of the model section that are sections themselves."""

from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.base.section import Section
from llmscale.config.bounds import Count, Width


class RotaryScaling(Section):
    """How the rotary frequencies of a model are stretched beyond the context that it was first trained on."""

    kind: Literal["linear", "llama3", "yarn"] = "linear"
    """linear: all frequencies divided by `factor` (Chen et al. 2023); llama3: only the slow ones (Llama 3's code);
    yarn: the same with a ramp over channels (Peng et al. 2023, section 3.2)."""
    factor: float = Field(ge=1)
    """By how much the slow frequencies are divided."""
    low_frequency_factor: float = Field(default=1.0, gt=0)
    """llama3: waves longer than original_positions / this are divided in full."""
    high_frequency_factor: float = Field(default=4.0, gt=0)
    """llama3: waves shorter than original_positions / this stay as they are."""
    original_positions: Count = Field(default=8192, ge=1)
    """llama3, yarn: the context before the stretch, in tokens."""
    fast_turns: float = Field(default=32.0, gt=0)
    """yarn: channels that turn more often within original_positions stay as they are."""
    slow_turns: float = Field(default=1.0, gt=0)
    """yarn: channels that turn less often are divided in full."""
    magnitude: float = Field(default=1.0, gt=0)
    """yarn: factor of rotated queries and of rotated keys (Peng et al. 2023, section 3.4, has 0.1 ln(factor) + 1)."""

    @model_validator(mode="after")
    def _ordered(self) -> "RotaryScaling":
        if self.high_frequency_factor <= self.low_frequency_factor:
            raise ValueError(
                f"high_frequency_factor ({self.high_frequency_factor}) must be above low_frequency_factor"
                f" ({self.low_frequency_factor})"
            )
        if self.fast_turns <= self.slow_turns:
            raise ValueError(f"fast_turns ({self.fast_turns}) must be above slow_turns ({self.slow_turns})")
        return self

    def function(self) -> dict[str, object]:
        """The settings that the kind has."""
        kinds = {
            "linear": (),
            "llama3": ("low_frequency_factor", "high_frequency_factor", "original_positions"),
            "yarn": ("original_positions", "fast_turns", "slow_turns", "magnitude"),
        }
        return self.model_dump(include={"kind", "factor", *kinds[self.kind]})


class ExpertsConfig(Section):
    """Mixture of experts in place of feed-forward layers (Shazeer et al. 2017). Routing looks at one sequence at a
    time, so that it does not depend on how a batch is cut."""

    count: Width = Field(ge=2)
    """Experts of a layer."""
    per_token: Width = Field(default=2, ge=1)
    """Experts that each token goes to."""
    every: Count = Field(default=1, ge=1)
    """Layers `every`, 2 x `every`, ... have experts (counted from 1), the others are dense."""
    ffn_size: Width | None = Field(default=None, ge=1)
    """Inner width of an expert, in channels; that of the dense layers when not given."""
    normalize: bool = True
    """Whether the weights of a token's experts are divided by their sum."""
    capacity_factor: float | None = Field(default=None, gt=0)
    """In training an expert takes at most this x per_token x tokens / count, rounded up, of a sequence's tokens (of a
    document's where documents are separate), in the order of positions; None: all that come."""
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    """sigmoid: each expert has a score of its own; which are chosen also depends on a bias of each, which does not
    learn (DeepSeek-V3, section 2.1.2, without its updates)."""
    groups: Width = Field(default=1, ge=1)
    """sigmoid: equal parts of the experts, of which each token chooses some before it chooses experts."""
    groups_per_token: Width = Field(default=1, ge=1)
    """Groups that each token's experts are chosen from: those with the highest sums of their two best scores."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the weights of a token's experts."""
    shared: Count = Field(default=0, ge=0)
    """Experts, beside those of `count`, that every token goes to; they are one feed-forward layer of their widths."""
    first_dense: Count = Field(default=0, ge=0)
    """The first layers, which are dense whatever `every` says."""
    balance_weight: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss (Switch Transformer, equation 4), which is 1 at perfect balance."""
    z_weight: float = Field(default=0.0, ge=0)
    """Weight of the router's z-loss (ST-MoE, equation 5)."""

    @model_validator(mode="after")
    def _enough(self) -> "ExpertsConfig":
        if self.per_token > self.count:
            raise ValueError(f"per_token ({self.per_token}) exceeds count ({self.count}) experts")
        if self.groups > 1 and self.scoring != "sigmoid":
            raise ValueError(f"groups ({self.groups}) are for scoring=sigmoid, but scoring is {self.scoring}; set it")
        if self.groups > 1 and (self.count % self.groups or self.count < 2 * self.groups):
            raise ValueError(
                f"groups ({self.groups}) must be equal parts of count ({self.count}) experts, of 2 or more each"
            )
        if self.groups_per_token > self.groups:
            raise ValueError(f"groups_per_token ({self.groups_per_token}) exceeds groups ({self.groups})")
        if self.per_token > self.count // self.groups * self.groups_per_token:
            raise ValueError(
                f"per_token ({self.per_token}) exceeds the {self.count // self.groups * self.groups_per_token} experts"
                f" of groups_per_token ({self.groups_per_token}) groups"
            )
        return self


class HeadConfig(Section):
    """A head in place of the language model's: what an objective that predicts no tokens needs, and sets itself."""

    name: str
    """Which head (llmscale/model/heads)."""
    outputs: Width = Field(default=1, ge=1)
    """Numbers that it makes of a vector, where it projects it."""
    pooling: Literal["first", "last", "mean", "each"] = "first"
    """Whose vector: the first token's, the last one's, the mean over the tokens, or each token's."""
    pooler: bool = False
    """A dense layer and tanh before the projection (BERT)."""
    transform: bool = False
    """A dense layer, the model's activation and its norm before the projection (ModernBERT)."""
    bias: bool = True
    """A bias of each output."""
    loss: Literal["cross_entropy", "binary_cross_entropy", "squared_error"] = "cross_entropy"
    """Of the outputs: one class is right; each is right or not; they are numbers."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the vector's values dropped before the projection in training."""
    normalize: bool = False
    """Vectors of length 1, of a head that gives the vectors themselves."""
    temperature: float = Field(default=1.0, gt=0)
    """What the similarities of such vectors are divided by."""
    symmetric: bool = False
    """Whether each of a pair of such vectors is looked for among the others."""


class LatentAttention(Section):
    """Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads are made of one short vector
    for each token, which is all that generation keeps of it."""

    query_rank: Width | None = Field(default=None, ge=1)
    """Channels of the vector that queries are made of; None: they are made of the hidden states."""
    key_value_rank: Width = Field(default=512, ge=1)
    """Channels of the vector that keys and values are made of."""
    rotary_size: Width = Field(default=64, ge=2)
    """Channels of a head of queries and keys that positions rotate, which all heads share in keys."""
    plain_size: Width = Field(default=128, ge=1)
    """The other channels of a head of queries and keys."""
    value_size: Width = Field(default=128, ge=1)
    """Channels of a head of values."""
    norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance inside the norms of both short vectors."""
