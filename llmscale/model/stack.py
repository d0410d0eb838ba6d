"""A stack of blocks: the decoder, or the encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.block import Block
from llmscale.model.cache import KeyValueCache
from llmscale.model.context import Context
from llmscale.model.dropout import Dropout, drop
from llmscale.model.masks import AttentionMask, cross_mask
from llmscale.model.norms import make_norm
from llmscale.model.positions import RelativeBias, Tables, alibi_bias, rotary_tables


class Stack(nn.Module):
    """Blocks over embedded tokens, and the norm after them.

    It may hold some of the layers only, `held` of `depth`: the others come before or after it.
    """

    def __init__(self, config: ModelConfig, layers: int, *, causal: bool, cross: bool = False, number: int = 0) -> None:
        super().__init__()
        self.config = config
        self.number = number
        self.causal = causal
        self.depth = layers
        self.held = range(layers)
        self.kinds = sorted({config.attention_kind(layer) for layer in range(layers)})
        self.relative_bias = RelativeBias(config, causal) if config.positions == "relative" else None
        self.blocks = nn.ModuleList(Block(config, layer, causal, cross) for layer in range(layers))
        self.norm = make_norm(config) if config.final_norm else None
        self.queries = nn.Embedding(config.max_positions, config.hidden_size) if config.query_layer else None

    @property
    def begins(self) -> bool:
        """Whether no layer comes before those that it holds."""
        return self.held.start == 0

    @property
    def ends(self) -> bool:
        """Whether no layer comes after those that it holds."""
        return self.held.stop == self.depth

    def run(
        self,
        hidden: Tensor,
        positions: Tensor,
        attention_mask: AttentionMask,
        *,
        memory: Tensor | None = None,
        memory_padding_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states after the final norm, and the sum of the layers' router losses.

        Args:
            hidden: (B, T, hidden_size) embedded tokens; what the layers before made of them, where there are others.
            positions: (B or 1, T) int64.
            attention_mask: who sees whom.
            memory: (B, S, hidden_size), the encoder's result.
            memory_padding_mask: (B, S) booleans, False for padding.
            cache: keys and values of earlier tokens.
            dropout: what is dropped; None: nothing.

        Returns:
            (B, T, hidden_size), and (B,) or None where there are no experts.
        """
        context = Context(
            rotary={kind: self._rotary(kind, positions) for kind in self.kinds},
            masks=self._masks(attention_mask, hidden),
            padding_mask=attention_mask.new_tokens,
            segment_ids=attention_mask.segment_ids,
            memory=memory,
            memory_mask=cross_mask(memory_padding_mask),
            cache=cache,
        )
        contexts = [context] * self.depth
        before = after = None
        if dropout is not None:
            before, after = dropout.around(self.number)
            contexts = [replace(context, dropout=own) for own in dropout.layers(self.number, self.depth)]
        part = 0 if dropout is None else dropout.part.positions
        if self.begins:
            hidden = self._drop(hidden, before, part)
        router_loss = None
        for layer, block in zip(self.held, self.blocks, strict=True):
            own = contexts[layer]
            if self.queries is not None and layer == self.depth - 1:
                hidden = self._finish(hidden)
                own = replace(own, queries=self.queries(positions))
            hidden, loss = block(hidden, own)
            router_loss = _add(router_loss, loss)
        if self.ends:
            hidden = hidden if self.queries is not None else self._finish(hidden)
            hidden = self._drop(hidden, after if self.config.dropout_scheme == "t5" else None, part)
        return hidden, router_loss

    def _drop(self, hidden: Tensor, keys: Tensor | None, part: int) -> Tensor:
        return hidden if keys is None or not self.config.dropout else drop(hidden, keys, self.config.dropout, [part])

    def _finish(self, hidden: Tensor) -> Tensor:
        return hidden if self.norm is None else self.norm(hidden)

    def _rotary(self, kind: str, positions: Tensor) -> Tables | None:
        config = self.config
        if config.positions != "rotary":
            return None
        base, scaling = config.rotary_base_of(kind), config.rotary_scaling_of(kind)
        return rotary_tables(positions, config.rotated_channels, base, scaling)

    def _masks(self, attention_mask: AttentionMask, hidden: Tensor) -> dict[str, Tensor | None]:
        """Masks by kind of layer, with the bias by distance added where there is one."""
        bias = self._bias(attention_mask, hidden)
        masks: dict[str, Tensor | None] = {}
        for kind in self.kinds:
            window = self.config.window if kind == "local" else None
            allowed = attention_mask.mask(causal=self.causal, window=window, device=hidden.device)
            if bias is None:
                masks[kind] = allowed
                continue
            if allowed is None and self.causal and attention_mask.length > 1:
                queries, keys = attention_mask.places(hidden.device)
                allowed = queries >= keys
            masks[kind] = bias if allowed is None else bias.masked_fill(~allowed, -torch.inf)
        return masks

    def _bias(self, attention_mask: AttentionMask, hidden: Tensor) -> Tensor | None:
        if self.relative_bias is None and self.config.positions != "alibi":
            return None
        queries, keys = attention_mask.places(hidden.device)
        if self.relative_bias is not None:
            return self.relative_bias(keys - queries)
        return alibi_bias(keys - queries, self.config.heads, self.heads).to(hidden.dtype)

    @property
    def heads(self) -> range:
        """Which of the heads this process computes: all."""
        return range(self.config.heads)


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
