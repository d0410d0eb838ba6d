"""The shape of the model."""

from typing import Literal

from pydantic import Field, model_validator

from data_pipeline.section import Section


class ModelConfig(Section):
    """A decoder Transformer, from GPT-2 to Llama, by its parts."""

    layers: int = Field(default=12, ge=1)
    """Transformer blocks."""
    hidden_size: int = Field(default=768, ge=1)
    """Width of the residual stream, in channels."""
    heads: int = Field(default=12, ge=1)
    """Query heads."""
    kv_heads: int | None = Field(default=None, ge=1)
    """Key and value heads (grouped-query attention); the number of query heads when not given."""
    head_size: int | None = Field(default=None, ge=1)
    """Channels of a head; hidden_size / heads when not given."""
    ffn_size: int | None = Field(default=None, ge=1)
    """Inner width of the feed-forward layer, in channels; 4 x hidden_size when not given."""
    vocab_size: int | None = Field(default=None, ge=1)
    """Tokens the model knows; the tokenizer's size when not given. Must equal the tokenizer's size."""
    vocab_multiple: int = Field(default=128, ge=1)
    """The embedding's rows are padded to a multiple of this; padded tokens never get any probability."""
    max_positions: int = Field(default=1024, ge=1)
    """Longest sequence, in tokens: the rows of learned positions, and the limit of generation."""
    positions: Literal["learned", "rotary"] = "learned"
    """How positions enter: a learned table added to the embedding, or rotary embedding of queries and keys."""
    rotary_base: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies (RoFormer, section 3.2.2)."""
    rotary_fraction: float = Field(default=1.0, gt=0, le=1)
    """Fraction of a head's channels that is rotated."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation, applied before each sub-layer and before the head."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance inside a norm."""
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu_tanh"
    """Feed-forward activation; swiglu has a gate projection besides up and down."""
    bias: bool = True
    """Biases in attention, feed-forward and LayerNorm."""
    tied_embeddings: bool = True
    """The head shares the embedding's weight."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; projections into the residual stream get it divided by
    sqrt(2 x layers) (GPT-2, section 2.3)."""

    @property
    def kv_head_count(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_channels(self) -> int:
        return self.head_size or self.hidden_size // self.heads

    @property
    def ffn_channels(self) -> int:
        return self.ffn_size or 4 * self.hidden_size

    def padded_vocab(self, vocab_size: int) -> int:
        """Rows of the embedding for a tokenizer of `vocab_size` tokens."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.head_size is None and self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by heads ({self.heads}), or head_size given"
            )
        if self.heads % self.kv_head_count:
            raise ValueError(f"heads ({self.heads}) must be divisible by kv_heads ({self.kv_head_count})")
        rotated = int(self.head_channels * self.rotary_fraction)
        if self.positions == "rotary" and rotated % 2:
            raise ValueError(
                f"rotary needs an even number of rotated channels, but rotary_fraction ({self.rotary_fraction}) of"
                f" {self.head_channels} head channels is {rotated}"
            )
        return self
