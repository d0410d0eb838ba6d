"""The Transformer: embeddings, blocks, heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmscale.config.model import ModelConfig
from llmscale.model.cache import KeyValueCache
from llmscale.model.dropout import Dropout
from llmscale.model.heads import all_heads, heads_of
from llmscale.model.low_rank import add_factors
from llmscale.model.masks import AttentionMask
from llmscale.model.norms import make_norm
from llmscale.model.positions import sinusoidal
from llmscale.model.projections import Vocabulary
from llmscale.model.stack import Stack


class Output(NamedTuple):
    """What the blocks make of a batch."""

    hidden: Tensor
    """(B, T, hidden_size), for a head."""
    router_loss: Tensor | None = None
    """(B,): each sequence's loss of the routers of all layers; None where there are no experts."""


class Transformer(Stack):
    """A decoder or an encoder with its embedding and head; an encoder-decoder has a second stack as `encoder`.

    The constructor's weights mean nothing: build on the meta device with `skeleton`, give memory with `to_empty`, and
    let `llmscale.parallel.init` draw them (`llmscale.parallel.init.build` does all three).
    """

    head: Vocabulary
    """That of a language model; None in a model without one, and on other stages of a pipeline than the last."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        two = config.architecture == "encoder_decoder"
        super().__init__(config, config.layers, causal=config.architecture != "encoder", cross=two)
        self.vocab_size = vocab_size
        rows = config.padded_vocab(vocab_size)
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.positions = nn.Embedding(config.position_rows, config.hidden_size) if config.position_rows else None
        self.token_types = nn.Embedding(config.token_types, config.hidden_size) if config.token_types else None
        self.embedding_norm = make_norm(config) if config.embedding_norm else None
        self.encoder = Stack(config, config.encoder_layer_count, causal=False, number=1) if two else None
        own = {head.name: head for head in heads_of(config)}
        for each in all_heads():
            setattr(self, each.attribute, own[each.name].build(vocab_size) if each.name in own else None)
        if config.lora is not None:
            add_factors(self, config.lora)
        self._tie()

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        *,
        shared_lengths: Tensor | None = None,
        padding_mask: Tensor | None = None,
        token_types: Tensor | None = None,
        encoder_inputs: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        memory: Tensor | None = None,
        cache: KeyValueCache | None = None,
        dropout: Dropout | None = None,
        hidden: Tensor | None = None,
    ) -> Output:
        """Hidden states for `head`, or for the layers that come after those held here.

        Args:
            inputs: (B, T) int64 token ids.
            positions: (B, T) int64, below `model.max_positions`; None: 0 .. T-1, or what follows the cached tokens.
            segment_ids: (B, T) int64, number of the document within the sample; tokens see their own document only.
                None: all that the architecture lets them.
            prefix_lengths: (B,) int64, how many tokens from the start all see each other.
            shared_lengths: (B,) int64, how many tokens from the start the tokens of all documents see; of use with
                segment_ids alone.
            padding_mask: (B, T) booleans, False for padding tokens; with a cache (B, length + T).
            token_types: (B, T) int64, below `model.token_types`; None: 0.
            encoder_inputs: (B, S) int64, what the encoder of an encoder-decoder reads.
            encoder_padding_mask: (B, S) booleans, False for padding.
            memory: (B, S, hidden_size), the result of `encode`, in place of `encoder_inputs`.
            cache: keys and values of earlier tokens; the new ones are added. Not together with segment_ids or dropout;
                with prefix_lengths only while it is empty.
            dropout: what training drops, at the rates of the config; None: nothing.
            hidden: (B, T, hidden_size), what the layers before those held here made of the inputs.

        Raises:
            ValueError: more tokens than `max_positions` without `positions`, a cache together with segment_ids or
                dropout, or one that holds tokens with prefix_lengths, or an encoder-decoder without anything for its
                encoder.
        """
        past, length = cache.length if cache else 0, inputs.shape[1]
        # With positions of their own there may be more: a cache also holds the padding tokens.
        if positions is None and past + length > self.config.max_positions:
            raise ValueError(f"{past + length} tokens exceed model.max_positions ({self.config.max_positions})")
        if cache is not None and (segment_ids is not None or (prefix_lengths is not None and past)):
            raise ValueError(
                "a cache cannot be combined with segment_ids, nor with prefix_lengths once it holds tokens"
            )
        if cache is not None and dropout is not None:
            raise ValueError("dropout is for training and cannot be combined with a cache")
        router_loss = None
        if self.encoder is not None and memory is None and not (cache and past):
            if encoder_inputs is None:
                raise ValueError("an encoder-decoder needs encoder_inputs or memory")
            memory, router_loss = self.encode(encoder_inputs, encoder_padding_mask, dropout)
        if positions is None:
            positions = torch.arange(past, past + length, device=inputs.device)[None]
        hidden, own_loss = self.run(
            self._embed(inputs, positions, token_types) if hidden is None else hidden,
            positions,
            AttentionMask(past, length, segment_ids, prefix_lengths, padding_mask, shared_lengths),
            memory=memory,
            memory_padding_mask=encoder_padding_mask,
            cache=cache,
            dropout=dropout,
        )
        if cache is not None:
            cache.advance(length)
        if router_loss is not None and own_loss is not None:
            own_loss = own_loss + router_loss
        return Output(hidden, own_loss)

    def encode(self, inputs: Tensor, padding_mask: Tensor | None = None, dropout: Dropout | None = None) -> Output:
        """What the encoder of an encoder-decoder makes of (B, S) tokens: (B, S, hidden_size) as the hidden states."""
        assert self.encoder is not None
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        attention_mask = AttentionMask(0, inputs.shape[1], padding_mask=padding_mask)
        return Output(*self.encoder.run(self._embed(inputs, positions), positions, attention_mask, dropout=dropout))

    def _embed(self, inputs: Tensor, positions: Tensor, token_types: Tensor | None = None) -> Tensor:
        hidden = self.embedding(inputs)
        if self.config.embedding_factor != 1:
            rounded = self.config.embedding_multiplier == "sqrt"
            factor = self.config.embedding_factor
            hidden = hidden * (torch.tensor(factor, dtype=hidden.dtype) if rounded else factor)
        if self.positions is not None:
            hidden = hidden + self.positions(positions + self.config.position_offset)
        elif self.config.positions == "sinusoidal":
            hidden = hidden + sinusoidal(positions, hidden.shape[-1]).to(hidden.dtype)
        if self.token_types is not None:
            hidden = hidden + self.token_types(torch.zeros_like(inputs) if token_types is None else token_types)
        return hidden if self.embedding_norm is None else self.embedding_norm(hidden)

    def _tie(self) -> None:
        # Where there are some of the layers only, either may be missing.
        if self.config.tied_embeddings and self.head is not None and self.embedding is not None:
            self.head.weight = self.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        super()._apply(fn, recurse)
        # to_empty gives every module a parameter of its own, which would untie the head.
        self._tie()
        return self


def skeleton(config: ModelConfig, vocab_size: int) -> Transformer:
    """A model on the meta device: modules and tensors' shapes without memory or values."""
    with torch.device("meta"), _WithoutValues():
        return Transformer(config, vocab_size)


class _WithoutValues(TorchFunctionMode):
    """Leaves out what torch.nn.init computes, for which the meta device would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))
