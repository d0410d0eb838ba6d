"""A vector of each text, compared with those of all other samples of the global batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmscale.config.model import HeadConfig, ModelConfig
from llmscale.families.hugging_face import HuggingFace
from llmscale.model.heads.head import Head, Memory, Sizes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch

_GRADIENT, _LOSSES = "contrastive.gradient", "contrastive.losses"
"""What `of_whole_batch` says of each sample, by the names in `Batch.labels`."""


class ContrastiveHead(Head):
    """No parameters: the vector is one of the hidden states, or their mean."""

    name = "contrastive"
    attribute = "contrastive"
    measures = ("accuracy", "mean_reciprocal_rank")
    higher_is_better = frozenset(measures)
    reads = "whole"
    whole_batch = True
    told_beside = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.head is not None
        self._head: HeadConfig = config.head

    def build(self, vocab_size: int) -> nn.Module:
        from torch import nn

        return nn.Identity()

    def texts(self, batch: Batch) -> int:
        return batch.labels[self.name].shape[1] if self.name in batch.labels else 1

    def represent(self, module: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, R, channels) of at least fp32: the vectors of a sample's texts, of hidden states (B * R, T, channels)."""
        import torch
        import torch.nn.functional as F

        from llmscale.model.pooling import pooled

        assert batch.encoder_weights is not None
        padding_mask = batch.encoder_weights.reshape(len(hidden), -1) > 0
        vectors = pooled(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), padding_mask, self._head.pooling)
        vectors = F.normalize(vectors, dim=-1) if self._head.normalize else vectors
        return vectors.view(batch.size, -1, vectors.shape[-1])

    def of_whole_batch(self, represented: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of each sample, and the gradient of their sum by its vectors (GradCache; Gao et al. 2021, section
        3.2)."""
        import torch

        with torch.enable_grad():
            vectors = represented.detach().requires_grad_()
            losses = self._losses(vectors, labels[self.name])
            [gradient] = torch.autograd.grad(losses.sum(), vectors)
        return {_GRADIENT: gradient, _LOSSES: losses.detach()}

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """Of a batch that knows the whole global batch its share of the loss, with the gradient of all of the loss by
        the vectors of this batch; of another one the loss within it."""
        vectors = self.represent(module, hidden, batch)
        gradient = batch.labels.get(_GRADIENT)
        if gradient is None:
            return self._losses(vectors, batch.labels[self.name]).sum()
        leads = (vectors * gradient).sum()
        return leads - leads.detach() + batch.labels[_LOSSES].sum()

    def _losses(self, vectors: Tensor, keys: Tensor) -> Tensor:
        from llmscale.model.similarity import contrastive_losses

        return contrastive_losses(vectors, keys, self._head.temperature, self._head.symmetric)

    def count(self, batch: Batch) -> float:
        return float((batch.labels[self.name][:, 0] >= 0).sum())

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        """Whether the positive is the most similar of all candidates of the batch, and 1 / its place among them."""
        from llmscale.model.similarity import positions_of_positives

        keys = batch.labels[self.name]
        vectors = self.represent(module, hidden, batch)
        places, known = positions_of_positives(vectors, keys), keys[:, 0] >= 0
        return [((places == 1) & known).sum().to(vectors.dtype), (known / places).sum().to(vectors.dtype)]

    def class_name(self, table: HuggingFace) -> str | None:
        return None if table.architecture == "encoder_decoder" else table.headless

    def body(self, table: HuggingFace) -> str:
        return ""

    def dropped(self, table: HuggingFace) -> tuple[str, ...]:
        return (r"pooler\.dense\.(weight|bias)",)

    def parameters(self, vocab_size: int, *, tensor: int = 1, ties: bool = True) -> int:
        return 0

    def flops(self, vocab_size: int, targets: int) -> int:
        return 0

    def memory(self, sizes: Sizes) -> Memory:
        # Vectors in fp32 are as large as the hidden states, or twice.
        return Memory(2 * sizes.residual)
