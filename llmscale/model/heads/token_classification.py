"""Labels of words or characters, each from the hidden state of a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data_pipeline.objectives.framed import AROUND
from llmscale.config.model import HeadConfig, ModelConfig
from llmscale.families.hugging_face import HuggingFace, Settings
from llmscale.model.heads.head import TokenHead
from llmscale.model.heads.labels import labels_of, written_dropout, written_labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch


class TokenClassificationHead(TokenHead):
    """A projection to a number for each label; the loss is a mean over the labelled tokens of all texts."""

    name = "token_classification"
    attribute = "token_classification"
    measures = ("accuracy",)
    higher_is_better = frozenset({"accuracy"})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # What is dropped is told by the place in the whole sequence, which a rank that has a part of it does not know.
        self.reads = "whole" if self._head.dropout else "each"

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        import torch.nn.functional as F

        logits = self.logits(module, hidden, batch, dropout).flatten(0, -2)
        return F.cross_entropy(logits, batch.labels[self.name].flatten(), ignore_index=-1, reduction="sum")

    def count(self, batch: Batch) -> float:
        return float((batch.labels[self.name] >= 0).sum())

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        logits, labels = self.logits(module, hidden, batch), batch.labels[self.name]
        return [((logits.argmax(-1) == labels) & (labels >= 0)).sum().to(logits.dtype)]

    @classmethod
    def read(cls, name: str, table: HuggingFace, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]] | None:
        known = cls.class_of(name, table)
        if known is None:
            return None
        labels, form = labels_of(settings), cls.form(known, settings, table)
        head = HeadConfig(name=cls.name, outputs=len(labels), pooling="each", **form)
        tags = all(label == "O" or (label[:2] in ("B-", "I-") and label[2:]) for label in labels)
        return head.model_dump(), {
            "name": cls.name,
            "labels": labels,
            "scheme": "bio" if tags else "none",
            "special_tokens": known.special_tokens or AROUND[table.architecture],
            **form,
        }

    def write(self, table: HuggingFace, objective: Mapping[str, Any]) -> dict[str, Any]:
        labels = objective.get("labels") or [f"LABEL_{output}" for output in range(self._head.outputs)]
        return {**written_labels(labels), **written_dropout(table.heads.get(self.name), self._head.dropout)}
