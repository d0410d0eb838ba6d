"""Labels of a whole sequence, from the hidden state of one of its tokens or from their mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data_pipeline.objectives.classification import pooling_of
from llmscale.config.model import HeadConfig, ModelConfig
from llmscale.families.hugging_face import HuggingFace, Settings, Unsupported
from llmscale.model.heads.head import Memory, ProjectingHead, Sizes
from llmscale.model.heads.labels import labels_of, written_dropout, written_labels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch

_PROBLEMS = {
    "single_label_classification": ("single_label", "cross_entropy"),
    "multi_label_classification": ("multi_label", "binary_cross_entropy"),
    "regression": ("regression", "squared_error"),
}
"""`objective.problem` and the loss, by `problem_type` of a config.json."""


class ClassificationHead(ProjectingHead):
    """BERT's pooler, the last token of GPT-2 or of T5's decoder, or a mean; and a projection to a number for each
    label."""

    name = "classification"
    attribute = "classification"
    higher_is_better = frozenset({"accuracy"})
    features: ClassVar[Literal["row", "token"] | None] = "row"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.reads = "first" if self._head.pooling == "first" else "whole"
        self.measures = {
            "cross_entropy": ("accuracy",),
            "binary_cross_entropy": ("accuracy",),
            "squared_error": ("absolute_error",),
        }[self._head.loss]

    def logits(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """(B, outputs), of at least fp32."""
        import torch

        logits: Tensor = module(self._pooled(hidden, batch), dropout)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """Over samples; of several labels or numbers, their mean (transformers' losses)."""
        import torch.nn.functional as F

        logits, labels = self.logits(module, hidden, batch, dropout), batch.labels[self.name]
        if self._head.loss == "cross_entropy":
            return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        known = ~labels.isnan()
        labels = labels.masked_fill(~known, 0.0).to(logits.dtype)
        if self._head.loss == "binary_cross_entropy":
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            losses = F.mse_loss(logits, labels, reduction="none")
        return (losses * known).sum() / self._head.outputs

    def count(self, batch: Batch) -> float:
        return float(self._known(batch).sum())

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        """Accuracy counts a sample of several labels where all of them are right."""
        logits, labels, known = self.logits(module, hidden, batch), batch.labels[self.name], self._known(batch)
        if self._head.loss == "squared_error":
            errors = (logits - labels.nan_to_num()).abs().mean(1)
            return [(errors * known).sum()]
        if self._head.loss == "cross_entropy":
            right = logits.argmax(1) == labels
        else:
            right = ((logits > 0) == (labels > 0)).all(1)
        return [(right & known).sum().to(logits.dtype)]

    def flops(self, vocab_size: int, targets: int) -> int:
        return super().flops(vocab_size, 1)

    def memory(self, sizes: Sizes) -> Memory:
        # The gradient of a slice is as large as what it is of.
        return Memory(sizes.residual)

    @classmethod
    def read(cls, name: str, table: HuggingFace, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]] | None:
        known = cls.class_of(name, table)
        if known is None:
            return None
        labels = labels_of(settings)
        kind = settings.values.get("problem_type") or ("regression" if len(labels) == 1 else next(iter(_PROBLEMS)))
        if kind not in _PROBLEMS:
            raise Unsupported(f"problem_type is {kind!r:.60}, but must be {' or '.join(_PROBLEMS)}; repair it")
        problem, loss = _PROBLEMS[kind]
        pooling = known.pooling
        if known.pooling_key:
            pooling = settings.choose("classifier_pooling", known.pooling_key, next(iter(known.pooling_key)))
        given = {"pooler": "pooler" in known.before, **cls.form(known, settings, table)}
        head = HeadConfig.model_validate(
            {"name": cls.name, "outputs": len(labels), "pooling": pooling, "bias": known.bias, "loss": loss, **given}
        )
        pooling = pooling_of(pooling, table.architecture)
        return head.model_dump(), {"name": cls.name, "labels": labels, "problem": problem, "pooling": pooling, **given}

    def write(self, table: HuggingFace, objective: Mapping[str, Any]) -> dict[str, Any]:
        labels = objective.get("labels") or [f"LABEL_{output}" for output in range(self._head.outputs)]
        kinds = {loss: kind for kind, (_, loss) in _PROBLEMS.items()}
        known = table.heads.get(self.name)
        keys = {} if known is None else {ours: theirs for theirs, ours in known.pooling_key.items()}
        return {
            **written_labels(labels),
            "problem_type": kinds[self._head.loss],
            **written_dropout(known, self._head.dropout),
            **({"classifier_pooling": keys[self._head.pooling]} if self._head.pooling in keys else {}),
        }

    def condensed(self, hidden: Tensor, batch: Batch) -> Tensor:
        return self._pooled(hidden, batch)

    def _pooled(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, hidden_size) of (B, T, hidden_size)."""
        from llmscale.model.pooling import pooled

        weights = batch.encoder_weights
        return pooled(hidden, None if weights is None else weights > 0, self._head.pooling)

    def _known(self, batch: Batch) -> Tensor:
        """(B,) booleans: which samples have labels."""
        labels = batch.labels[self.name]
        return ~labels.isnan().any(1) if labels.is_floating_point() else labels >= 0
