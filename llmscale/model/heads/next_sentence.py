"""Whether the second segment follows the first: BERT's second head (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmscale.config.model import HeadConfig
from llmscale.model.heads.head import Head, Memory, Sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch


class NextSentenceHead(Head):
    """The pooler over the first token, and two logits: it follows, or it does not."""

    name = "next_sentence"
    attribute = "next_sentence"
    title = "Next-sentence loss"
    unit = "nats per pair"
    reads = "first"

    def build(self, vocab_size: int) -> nn.Module:
        from llmscale.model.projections import Projection

        return Projection(self.config, HeadConfig(name=self.name, outputs=2, pooler=True))

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        import torch
        import torch.nn.functional as F

        logits = module(hidden[:, 0])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, batch.labels[self.name], ignore_index=-1, reduction="sum")

    def count(self, batch: Batch) -> float:
        return float((batch.labels[self.name] >= 0).sum())

    def parameters(self, vocab_size: int, *, tensor: int = 1, ties: bool = True) -> int:
        hidden = self.config.hidden_size
        return hidden * (hidden + 1) + 2 * (hidden + 1)

    def flops(self, vocab_size: int, targets: int) -> int:
        hidden = self.config.hidden_size
        return 2 * hidden * (hidden + 2)

    def memory(self, sizes: Sizes) -> Memory:
        # The gradient of a slice is as large as what it is of.
        return Memory(sizes.residual)
