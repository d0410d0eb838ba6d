"""The decoder Transformer, from GPT-2 to Llama."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmscale.config.model import ModelConfig
from llmscale.model.attention import continuation_mask, prefix_mask, segment_mask
from llmscale.model.block import Block
from llmscale.model.cache import KeyValueCache
from llmscale.model.heads import Head
from llmscale.model.norms import make_norm
from llmscale.model.positions import rotary_tables


class Transformer(nn.Module):
    """Embedding, blocks, final norm and head.

    The constructor's weights mean nothing: build on the meta device, give memory with `to_empty`, and let
    `llmscale.parallel.init` draw them (`llmscale.parallel.init.build` does all three).
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        rows = config.padded_vocab(vocab_size)
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.positions = (
            nn.Embedding(config.max_positions, config.hidden_size) if config.positions == "learned" else None
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config)
        self.head = Head(vocab_size, rows, config.hidden_size)
        self._tie()

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, for `head`.

        Args:
            inputs: (B, T) int64 token ids.
            positions: (B, T) int64; None: 0 .. T-1, or what follows the cached tokens.
            segment_ids: (B, T) int64, number of the document within the sample; tokens see their own document only.
                None: everything before them.
            prefix_lengths: (B,) int64, how many tokens from the start all see each other.
            cache: keys and values of earlier tokens; the new ones are added. Not together with the two above.

        Returns:
            (B, T, hidden_size).

        Raises:
            ValueError: more tokens than `max_positions`, or a cache together with segment_ids or prefix_lengths.
        """
        past, length = cache.length if cache else 0, inputs.shape[1]
        if past + length > self.config.max_positions:
            raise ValueError(f"{past + length} tokens exceed model.max_positions ({self.config.max_positions})")
        if cache is not None and (segment_ids is not None or prefix_lengths is not None):
            raise ValueError("segment_ids and prefix_lengths cannot be combined with a cache")
        if positions is None:
            positions = torch.arange(past, past + length, device=inputs.device)[None]
        hidden, rotary = self.embedding(inputs), None
        if self.positions is not None:
            hidden = hidden + self.positions(positions)
        else:
            rotated = int(self.config.head_channels * self.config.rotary_fraction)
            rotary = rotary_tables(positions, rotated, self.config.rotary_base)
        mask = None
        if segment_ids is not None:
            mask = segment_mask(segment_ids)
        elif prefix_lengths is not None:
            mask = prefix_mask(prefix_lengths, length)
        elif past and length > 1:
            mask = continuation_mask(past, length, inputs.device)
        for block in self.blocks:
            hidden = block(hidden, rotary, mask, cache)
        if cache is not None:
            cache.advance(length)
        return self.norm(hidden)

    def _tie(self) -> None:
        if self.config.tied_embeddings:
            self.head.weight = self.embedding.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Transformer":
        super()._apply(fn, recurse)
        # to_empty gives every module a parameter of its own, which would untie the head.
        self._tie()
        return self
