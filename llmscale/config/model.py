"""The shape of the model."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_pipeline.base.section import Section
from llmscale import families
from llmscale.config.bounds import Count, Layers, Width
from llmscale.config.lora import LoraConfig
from llmscale.config.model_parts import ExpertsConfig, HeadConfig, LatentAttention, RotaryScaling

GATED = ("swiglu", "geglu", "geglu_tanh", "reglu")
"""Activations that multiply a second projection with the activated one."""

OF_HEADS = ("head", "head_bias", "head_transform", "scaled_head", "head_divisor", "tied_embeddings", "next_sentence")
"""Settings of the model that are those of its heads."""


class ModelConfig(Section):
    """A Transformer, by its parts: decoder, encoder, or both. `family` fills in the parts of a published model."""

    family: families.Family | None = None
    """A published model family, whose parts become the defaults of this section (llmscale/families)."""
    architecture: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """decoder: tokens see those before them (GPT); encoder: tokens see each other (BERT); encoder_decoder: both, and
    the decoder sees the encoder's result (T5)."""
    layers: Layers = Field(default=12, ge=1)
    """Transformer blocks; of the decoder, where there are both."""
    encoder_layers: Layers | None = Field(default=None, ge=1)
    """Blocks of the encoder of an encoder_decoder; `layers` when not given."""
    hidden_size: Width = Field(default=768, ge=1)
    """Width of the residual stream, in channels."""
    heads: Width = Field(default=12, ge=1)
    """Query heads."""
    kv_heads: Width | None = Field(default=None, ge=1)
    """Key and value heads (grouped-query attention); the number of query heads when not given."""
    head_size: Width | None = Field(default=None, ge=1)
    """Channels of a head; hidden_size / heads when not given."""
    ffn_size: Width | None = Field(default=None, ge=1)
    """Inner width of the feed-forward layer, in channels; 4 x hidden_size when not given."""
    experts: ExpertsConfig | None = None
    """Mixture of experts; None: every layer is dense."""
    vocab_size: Count | None = Field(default=None, ge=1)
    """Tokens the model knows; the tokenizer's size when not given, and not below it."""
    vocab_multiple: Count = Field(default=128, ge=1)
    """The embedding's rows are padded to a multiple of this; padded tokens never get any probability."""
    max_positions: Count = Field(default=1024, ge=1)
    """Longest sequence, in tokens: the rows of learned positions, and the limit of generation."""
    positions: Literal["learned", "rotary", "relative", "alibi", "sinusoidal"] = "learned"
    """How positions enter: a learned or a sinusoidal (Vaswani et al. 2017, section 3.5) table added to the embedding;
    rotary embedding of queries and keys; a learned bias by distance (T5) or a fixed one (ALiBi, Press et al. 2022)."""
    position_offset: Count = Field(default=0, ge=0)
    """Rows of the learned table before that of the first position (RoBERTa, where they belong to special tokens)."""
    rotary_base: float = Field(default=10000.0, gt=0)
    """Base of the rotary frequencies (RoFormer, section 3.2.2)."""
    rotary_local_base: float | None = Field(default=None, gt=0)
    """Base in local layers; `rotary_base` when not given."""
    rotary_fraction: float = Field(default=1.0, gt=0, le=1)
    """Fraction of a head's channels that is rotated."""
    rotary_interleaved: bool = False
    """Rotate channels 2i and 2i + 1 together (GPT-J) rather than i and i + half (GPT-NeoX, Llama)."""
    rotary_scaling: RotaryScaling | None = None
    """Stretched rotary frequencies."""
    rotary_local_scaled: bool = True
    """Whether rotary_scaling acts in local layers, too."""
    rotary_pattern: list[bool] = Field(default=[True], min_length=1)
    """Which layers rotate queries and keys, repeated over them; the others know of no positions but the order that the
    causal mask gives (Yang et al. 2025, RNoPE)."""
    relative_buckets: Count = Field(default=32, ge=4)
    """Distances that relative positions tell apart (T5)."""
    relative_max_distance: Count = Field(default=128, ge=2)
    """Distance from which on all are one bucket (T5), in tokens."""
    attention_pattern: list[Literal["global", "local"]] = Field(default=["global"], min_length=1)
    """Kinds of attention of the layers, repeated over them: to all tokens, or within `window`."""
    window: Count | None = Field(default=None, ge=2)
    """Tokens that local attention sees: in a decoder the last ones, itself included; in an encoder half of them on
    either side."""
    attention_scale: float | None = Field(default=None, gt=0)
    """Factor of the attention scores; 1 / sqrt(head channels) when not given."""
    latent: LatentAttention | None = None
    """Multi-head latent attention (DeepSeek-V3); None: plain multi-head attention."""
    query_key_norm: bool = False
    """RMSNorm of queries and keys."""
    query_key_norm_over: Literal["head", "projection"] = "head"
    """head: over the channels of each head (Qwen3); projection: over those of all heads together (OLMo 2)."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation of the residual stream."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the variance inside a norm."""
    norm_bias: bool | None = None
    """Biases of LayerNorms; `bias` when not given."""
    norm_plus_one: bool = False
    """RMSNorms multiply by 1 + weight (Gemma)."""
    norm_order: Literal["pre", "post", "reordered", "sandwich"] = "pre"
    """pre: before each sub-layer and before the head (GPT-2); post: after each sub-layer's sum (BERT); reordered: of
    what each sub-layer adds to the residual stream, and before the head (OLMo 2, section 3.1); sandwich: both pre and
    reordered (Gemma 3)."""
    embedding_multiplier: Annotated[float, Field(gt=0)] | Literal["sqrt"] = 1.0
    """Factor of the tokens' embeddings (Granite); sqrt: the square root of hidden_size, rounded as they are (Gemma)."""
    residual_multiplier: float = Field(default=1.0, gt=0)
    """Factor of what each sub-layer adds to the residual stream (Granite)."""
    embedding_norm: bool = False
    """A norm after the embeddings (BERT)."""
    first_norm: bool = True
    """A norm before the attention of the first layer; ModernBERT has it after the embeddings only."""
    parallel_residual: bool = False
    """Attention and feed-forward read the same input and are added together (GPT-J)."""
    shared_norm: bool = False
    """With parallel_residual: both read the output of one norm."""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "geglu_tanh", "reglu"] = "gelu_tanh"
    """Feed-forward activation; the last four have a gate projection besides up and down."""
    bias: bool = True
    """Biases of feed-forward layers, and of what does not say otherwise."""
    qkv_bias: bool | None = None
    """Biases of query, key and value projections; `bias` when not given."""
    attention_output_bias: bool | None = None
    """Bias of the attention's output projection; `bias` when not given."""
    head_bias: bool = False
    """A bias for each token's logit."""
    head_transform: bool = False
    """A dense layer, activation and norm before the head (BERT)."""
    tied_embeddings: bool = True
    """The head shares the embedding's weight."""
    scaled_head: bool = False
    """The head's input is divided by sqrt(hidden_size) (T5 v1.0, whose embedding is large)."""
    head_divisor: float = Field(default=1.0, gt=0)
    """The head's input is divided by this (Granite)."""
    token_types: Count = Field(default=0, ge=0)
    """Rows of a learned table for the type of each token: first or second segment (BERT); 0: none."""
    next_sentence: bool = False
    """A pooler over the first token and a head that tells whether the second segment follows the first (BERT)."""
    head: HeadConfig | None = None
    """A head in place of the language model's; the objective sets it."""
    lora: LoraConfig | None = None
    """Low-rank factors beside linear layers; `finetune.lora` sets it."""
    query_layer: bool = False
    """The last layer takes its queries from a learned table of positions instead of the hidden states, after the
    final norm (PanGu-alpha, section 2.2.2)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of values dropped in training of the embeddings and of what each sub-layer adds to the residual stream.
    BERT, GPT-2 and T5 were published with 0.1 here and in attention_dropout; nothing by default, as is done today."""
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention probabilities dropped in training."""
    dropout_scheme: Literal["residual", "t5"] = "residual"
    """Where `dropout` acts. residual: as said there (GPT-2, BERT); t5: also inside dense feed-forward layers after the
    activation, and after the last norm of each stack (Raffel et al. 2020, code)."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; with norms before sub-layers, projections into the residual stream get it
    divided by sqrt(2 x layers) (GPT-2, section 2.3)."""
    init_scheme: Literal["normal", "fan_in"] = "normal"
    """normal: init_std throughout; fan_in: that of T5 (Raffel et al. 2020, code): 1 for the embedding, else
    1 / sqrt(inputs), queries another 1 / sqrt(head channels)."""

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("family"), str):
            return {**families.preset(given["family"]), **given}
        return given

    @property
    def predicts(self) -> tuple[str, ...]:
        """The names of its heads (llmscale/model/heads), that of its loss first."""
        if self.head is not None:
            return (self.head.name,)
        return ("language", "next_sentence") if self.next_sentence else ("language",)

    @property
    def plain(self) -> "ModelConfig":
        """The model without low-rank factors."""
        return self if self.lora is None else self.model_copy(update={"lora": None})

    @property
    def encoder_alone(self) -> "ModelConfig":
        """The encoder of an encoder_decoder as a model of its own."""
        own = {"architecture": "encoder", "layers": self.encoder_layer_count, "encoder_layers": None}
        return self.model_copy(update=own)

    @property
    def shares_embedding(self) -> bool:
        """Whether a head's weight is the embedding's."""
        return self.tied_embeddings and self.head is None

    @property
    def cannot_generate(self) -> str | None:
        """The setting for which the model continues no text, with its value; None: it does."""
        if self.architecture == "encoder":
            return "model.architecture is encoder"
        return None if self.head is None else f"model.head is {self.head.name}"

    @property
    def kv_head_count(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_channels(self) -> int:
        if self.latent is not None:
            return self.latent.plain_size + self.latent.rotary_size
        return self.head_size or self.hidden_size // self.heads

    @property
    def ffn_channels(self) -> int:
        return self.ffn_size or 4 * self.hidden_size

    @property
    def expert_channels(self) -> int:
        """Inner width of an expert; of a dense layer where there are none."""
        return (self.experts.ffn_size if self.experts else None) or self.ffn_channels

    @property
    def encoder_layer_count(self) -> int:
        """Blocks of the encoder; 0 where there is none."""
        return {
            "decoder": 0,
            "encoder": self.layers,
            "encoder_decoder": self.encoder_layers or self.layers,
        }[self.architecture]

    @property
    def gated(self) -> bool:
        """Whether feed-forward layers have a gate projection."""
        return self.activation in GATED

    @property
    def position_rows(self) -> int:
        """Rows of the learned table of positions; 0 where there is none."""
        return self.max_positions + self.position_offset if self.positions == "learned" else 0

    @property
    def embedding_factor(self) -> float:
        """Factor of the tokens' embeddings."""
        return math.sqrt(self.hidden_size) if self.embedding_multiplier == "sqrt" else self.embedding_multiplier

    def rotary_base_of(self, kind: str) -> float:
        """Base of the rotary frequencies in global or local layers."""
        return self.rotary_base if kind == "global" else self.rotary_local_base or self.rotary_base

    def rotary_scaling_of(self, kind: str) -> RotaryScaling | None:
        """How the rotary frequencies of global or local layers are stretched."""
        return self.rotary_scaling if kind == "global" or self.rotary_local_scaled else None

    @property
    def rotated_channels(self) -> int:
        """Channels of a head that rotary positions rotate."""
        if self.latent is not None:
            return self.latent.rotary_size
        return int(self.head_channels * self.rotary_fraction)

    @property
    def norm_start(self) -> float:
        """Initial weight of norms."""
        return 0.0 if self.norm_plus_one else 1.0

    @property
    def head_factor(self) -> float:
        """Factor of the head's input."""
        return (self.hidden_size**-0.5 if self.scaled_head else 1.0) / self.head_divisor

    @property
    def final_norm(self) -> bool:
        """Whether a norm comes after each stack of blocks."""
        return self.norm_order != "post"

    def block_norms(self, layer: int, cross: bool) -> int:
        """Norms of layer `layer` (from 0), besides those of queries and keys; `cross`: with cross-attention."""
        if self.norm_order == "reordered":
            return 2 + cross
        if self.norm_order == "sandwich":
            return 2 * (2 + cross)
        return int(self.first_norm or layer > 0) + int(not self.shared_norm) + int(cross)

    def has_bias(self, part: Literal["norm", "qkv", "attention_output"]) -> bool:
        """Whether a part that may say so itself has biases."""
        own: bool | None = getattr(self, f"{part}_bias")
        return self.bias if own is None else own

    def attention_kind(self, layer: int) -> Literal["global", "local"]:
        """Whether layer `layer` (from 0) sees all tokens or a window."""
        return self.attention_pattern[layer % len(self.attention_pattern)]

    def rotates(self, layer: int) -> bool:
        """Whether the attention of layer `layer` (from 0) has rotary positions."""
        return self.positions == "rotary" and self.rotary_pattern[layer % len(self.rotary_pattern)]

    def has_experts(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) is a mixture of experts."""
        experts = self.experts
        return experts is not None and (layer + 1) % experts.every == 0 and layer >= experts.first_dense

    def dense_channels(self, layer: int) -> int:
        """Inner width of the dense feed-forward layer of layer `layer` (from 0); 0 where there is none."""
        if self.experts is not None and self.has_experts(layer):
            return self.experts.shared * self.expert_channels
        return self.ffn_channels

    def vocabulary(self, tokenizer_size: int) -> int:
        """Tokens that the model knows, with a tokenizer of `tokenizer_size` tokens."""
        return self.vocab_size or tokenizer_size

    def padded_vocab(self, vocab_size: int) -> int:
        """Rows of the embedding for a model of `vocab_size` tokens."""
        return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple

    @model_validator(mode="after")
    def _divisible(self) -> "ModelConfig":
        if self.head_size is None and self.latent is None and self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by heads ({self.heads}), or head_size given"
            )
        if self.heads % self.kv_head_count:
            raise ValueError(f"heads ({self.heads}) must be divisible by kv_heads ({self.kv_head_count})")
        rotated = self.rotated_channels
        if self.positions == "rotary" and rotated < 2:
            least = math.ceil(2 / self.head_channels * 10_000) / 10_000
            fix = f"rotary_fraction to {least}" if least <= 1 else "head_size to 2"
            raise ValueError(
                f"rotary needs at least 2 rotated channels, but rotary_fraction ({self.rotary_fraction}) of"
                f" {self.head_channels} head channels is {rotated}; set {fix} or more"
            )
        if self.positions == "rotary" and rotated % 2:
            raise ValueError(
                f"rotary needs an even number of rotated channels, but rotary_fraction ({self.rotary_fraction}) of"
                f" {self.head_channels} head channels is {rotated}"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"sinusoidal positions need an even hidden_size, but it is {self.hidden_size}")
        return self

    @model_validator(mode="after")
    def _combinable(self) -> "ModelConfig":
        for wrong, sentence in self._conflicts():
            if wrong:
                raise ValueError(sentence)
        return self

    def _conflicts(self) -> Iterator[tuple[bool, str]]:
        """(whether settings cannot go together, the sentence that says so)."""
        kind, cross = self.architecture, self.architecture == "encoder_decoder"
        yield (
            "local" in self.attention_pattern and self.window is None,
            "attention_pattern has local layers, but no window is given; set window",
        )
        yield (
            self.shared_norm and not self.parallel_residual,
            "shared_norm is true, but parallel_residual is false; set both",
        )
        yield (
            self.norm_order != "pre" and (self.parallel_residual or not self.first_norm),
            f"norm_order is {self.norm_order}, which knows neither parallel_residual nor first_norm=false; use pre",
        )
        latent = self.latent is not None
        yield (
            latent and (cross or self.positions != "rotary" or self.rotary_fraction != 1),
            f"latent attention is for rotary positions in decoders or encoders, but architecture is {kind}, positions"
            f" {self.positions} and rotary_fraction {self.rotary_fraction}; set positions=rotary and rotary_fraction=1",
        )
        yield (
            latent and not all(self.rotary_pattern),
            f"latent attention has rotary positions in every layer, but rotary_pattern is {self.rotary_pattern}; leave"
            f" it out",
        )
        yield (
            latent and (self.query_key_norm or self.head_size is not None or self.kv_head_count != self.heads),
            "latent is given, which says the sizes of heads and has norms of its own; leave out kv_heads, head_size and"
            " query_key_norm",
        )
        yield (
            self.norm_plus_one and self.norm != "rmsnorm",
            f"norm_plus_one is true, but norm is {self.norm}; it is for rmsnorm",
        )
        yield (
            self.norm_plus_one and self.query_key_norm and self.query_key_norm_over == "projection",
            "norm_plus_one is true, but query_key_norm_over is projection; use head",
        )
        yield (
            self.position_offset > 0 and self.positions != "learned",
            f"position_offset ({self.position_offset}) is for learned positions, but positions is {self.positions};"
            f" set it to 0",
        )
        yield (
            self.parallel_residual and cross,
            "parallel_residual is true, but an encoder_decoder has three sub-layers in a block; set it to false",
        )
        yield (
            self.query_layer and (kind != "decoder" or self.norm_order != "pre" or self.parallel_residual),
            "query_layer is true, which needs architecture=decoder, norm_order=pre and parallel_residual=false",
        )
        yield (
            self.next_sentence and kind != "encoder",
            f"next_sentence is true, but architecture is {kind}; it is for an encoder",
        )
        yield (
            self.next_sentence and self.token_types < 2,
            f"next_sentence tells two segments apart, but token_types is {self.token_types}; set token_types=2",
        )
        yield (
            self.encoder_layers is not None and not cross,
            f"encoder_layers ({self.encoder_layers}) is given, but architecture is {kind}; use layers",
        )
        yield (
            self.experts is not None and (self.hidden_size % 8 > 0 or self.expert_channels % 8 > 0),
            f"experts need rows of whole 16 bytes, but hidden_size is {self.hidden_size} and the experts' ffn_size"
            f" {self.expert_channels}; make both multiples of 8",
        )
        yield (
            self.relative_max_distance <= self.relative_buckets // 2,
            f"relative_max_distance ({self.relative_max_distance}) must exceed half of relative_buckets"
            f" ({self.relative_buckets})",
        )
