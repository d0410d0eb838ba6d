"""The tables of GLUE (Wang et al. 2019): a text, or a pair of texts, with its label."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from data_pipeline.layouts.layout import TARGET, TEXT, Layout, Record

_PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("#1 String", "#2 String"),
)
"""The columns of each task's texts: RTE, STS-B, WNLI and MNLI; QQP; QNLI; SNLI; MRPC."""
_LABELS = ("gold_label", "label", "score", "is_duplicate", "Quality")


class Glue(Layout):
    """A row of SST-2 or CoLA: sentence and label."""

    name = "glue"
    gives = frozenset({"label"})
    fields: ClassVar[tuple[str, ...]] = ("sentence", *_LABELS)
    texts: ClassVar[tuple[tuple[str, ...], ...]] = (("sentence",),)

    def lacking(self, present: Collection[str]) -> str | None:
        if self._texts(present) is None:
            return self.texts[0][0]
        return None if any(label in present for label in _LABELS) else "label"

    def convert(self, record: Record) -> dict[str, Any]:
        texts = (record.get(name) for name in self._texts(record) or self.texts[0])
        label = next((record[name] for name in _LABELS if record.get(name) is not None), None)
        return {"label": label, **dict(zip((TEXT, TARGET), texts, strict=False))}

    def _texts(self, present: Collection[str]) -> tuple[str, ...] | None:
        return next((names for names in self.texts if all(name in present for name in names)), None)


class GluePairs(Glue):
    """A row of the other tasks: sentence1, sentence2 and label; question1, question2 and is_duplicate; ..."""

    name = "glue_pairs"
    gives = frozenset({"label", TARGET})
    fields = (*dict.fromkeys(name for pair in _PAIRS for name in pair), *_LABELS)
    texts = _PAIRS
