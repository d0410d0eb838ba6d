"""Where the answer to a question begins and ends: a softmax over the positions of a sequence for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data_pipeline.objectives.framed import AROUND
from llmscale.config.model import HeadConfig
from llmscale.families.hugging_face import HuggingFace, Settings
from llmscale.model.heads.head import TokenHead
from llmscale.model.heads.labels import written_dropout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch


class SpanHead(TokenHead):
    """A projection to two numbers, of beginning and end (Devlin et al. 2019, section 4.2). Padding has no share of the
    softmax, which transformers' classes give it."""

    name = "span"
    attribute = "span"
    measures = ("exact",)
    higher_is_better = frozenset({"exact"})
    reads = "whole"

    def logits(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """(B, T, 2), of at least fp32; -inf at padding."""
        import torch

        assert batch.encoder_weights is not None
        padding = batch.encoder_weights <= 0
        return super().logits(module, hidden, batch, dropout).masked_fill(padding[..., None], -torch.inf)

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """Over samples: the mean of both ends' losses."""
        import torch.nn.functional as F

        logits, places = self.logits(module, hidden, batch, dropout), batch.labels[self.name]
        ends = (F.cross_entropy(logits[..., end], places[:, end], ignore_index=-1, reduction="sum") for end in (0, 1))
        return sum(ends, start=logits.new_zeros(())) / 2

    def count(self, batch: Batch) -> float:
        return float((batch.labels[self.name][:, 0] >= 0).sum())

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        """Samples of which both ends are the most probable ones."""
        logits, places = self.logits(module, hidden, batch), batch.labels[self.name]
        return [(logits.argmax(1) == places).all(1).sum().to(logits.dtype)]

    @classmethod
    def read(cls, name: str, table: HuggingFace, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]] | None:
        known = cls.class_of(name, table)
        if known is None:
            return None
        form = cls.form(known, settings, table)
        head = HeadConfig(name=cls.name, outputs=2, pooling="each", **form)
        return head.model_dump(), {"name": cls.name, "special_tokens": AROUND[table.architecture], **form}

    def write(self, table: HuggingFace, objective: Mapping[str, Any]) -> dict[str, Any]:
        return written_dropout(table.heads.get(self.name), self._head.dropout)
