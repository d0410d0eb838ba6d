"""The language model's head: logits of the tokens, or their loss without ever holding all logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmscale.model.heads.head import Head, Memory, Sizes, transform_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch

CHUNK_TOKENS = 1024
"""Tokens whose logits are held at a time (`llmscale.model.cross_entropy`)."""
_INDEX, _WIDE = 8, 4


class LanguageHead(Head):
    """Predicts a token at each position."""

    name = "language"
    attribute = "head"
    generates = True
    per_token = True
    sharding = (("", "vocabulary"),)

    def build(self, vocab_size: int) -> nn.Module:
        from llmscale.model.projections import Vocabulary

        return Vocabulary(self.config, vocab_size)

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        return module(hidden, batch.targets, batch.weights)  # type: ignore[no-any-return]

    def count(self, batch: Batch) -> float:
        import torch

        return float(batch.weights.sum(dtype=torch.float64))

    def parameters(self, vocab_size: int, *, tensor: int = 1, ties: bool = True) -> int:
        config = self.config
        rows, hidden = config.padded_vocab(vocab_size) // tensor, config.hidden_size
        count = config.head_bias * rows
        if not (config.tied_embeddings and ties):
            count += rows * hidden
        if config.head_transform:
            count += transform_parameters(config)
        return count

    def flops(self, vocab_size: int, targets: int) -> int:
        hidden = self.config.hidden_size
        count = 2 * targets * hidden * self.config.padded_vocab(vocab_size)
        return count + (2 * targets * hidden**2 if self.config.head_transform else 0)

    def memory(self, sizes: Sizes) -> Memory:
        """The loss keeps the gradients of its input and of its weight, which it computes at once."""
        config, element = self.config, sizes.element
        rows = config.padded_vocab(sizes.vocab_size) // sizes.tensor
        hidden = sizes.tokens * config.hidden_size * element
        weight = rows * config.hidden_size
        gradients = hidden + weight * element + (rows * element if config.head_bias else 0)
        kept = gradients
        if config.head_transform:
            statistics = (2 if config.norm == "layernorm" else 1) * sizes.tokens * _WIDE
            kept += 3 * hidden + statistics + sizes.tokens * _INDEX
        narrow = element < _WIDE
        chunk = min(CHUNK_TOKENS, sizes.tokens) * rows * (_WIDE + (element if narrow else 0))
        # The gradient is summed in fp32; what is kept of it afterwards is counted already.
        wide = weight * _WIDE if narrow else 0
        product = weight * element if narrow else 0
        return Memory(kept, max(chunk + product + wide - (weight * element if narrow else 0), wide), gradients)
