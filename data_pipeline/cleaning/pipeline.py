"""The cleaning steps of a config as one generator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline.cleaning.config import (
    CleaningStep,
)
from data_pipeline.cleaning.filters import reject_language, reject_length, reject_low_quality
from data_pipeline.cleaning.html import html_text
from data_pipeline.cleaning.normalisation import (
    normalise_unicode,
    normalise_whitespace,
    reject_broken_encoding,
    strip_control_characters,
)
from data_pipeline.cleaning.repetition import reject_repetition
from data_pipeline.cleaning.text import blank

if TYPE_CHECKING:
    from data_pipeline.document import Document

Cleaner = Callable[["Iterable[Document]"], "Iterator[Document]"]


class _Rules(NamedTuple):
    """What a step does to a document: first it may reject it, then it may change its texts."""

    reject: Callable[[str], str | None] | None = None
    change: Callable[[str], str] | None = None


def build_cleaner(steps: Sequence[CleaningStep], dropped: Counter[str]) -> Cleaner:
    """The steps, one after the other, as a function from documents to documents.

    A document keeps its id, file and position. Steps that change text also change the target of a pair; steps that
    drop documents judge the text alone. A document that a step leaves without text or target is dropped.

    Args:
        steps: `DataConfig.cleaning`.
        dropped: gets one count per dropped document under "STEP: RULE"; what is read twice counts twice.

    Returns:
        A function that may be called any number of times; it keeps no state between documents.

    Raises:
        UserError: a step needs a library that is not installed, or names a language that is not known.
    """
    stages = [
        _stage(step.step, _BUILDERS[step.step](step, f"data.cleaning[{index}]"), dropped)
        for index, step in enumerate(steps)
    ]

    def clean(documents: Iterable[Document]) -> Iterator[Document]:
        stream = iter(documents)
        for stage in stages:
            stream = stage(stream)
        return stream

    return clean


_BUILDERS: dict[str, Callable[[Any, str], _Rules]] = {
    "unicode": lambda step, where: _Rules(change=normalise_unicode(step)),
    "control_characters": lambda step, where: _Rules(reject_broken_encoding(step), strip_control_characters(step)),
    "html": lambda step, where: _Rules(change=html_text(where)),
    "whitespace": lambda step, where: _Rules(change=normalise_whitespace(step)),
    "length": lambda step, where: _Rules(reject_length(step)),
    "repetition": lambda step, where: _Rules(reject_repetition(step)),
    "gopher_quality": lambda step, where: _Rules(reject_low_quality(step)),
    "language": lambda step, where: _Rules(reject_language(step, where)),
}


def _stage(name: str, rules: _Rules, dropped: Counter[str]) -> Cleaner:
    reject, change = rules

    def stage(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            rule = reject(document.text) if reject else None
            cleaned = _changed(document, change) if change and rule is None else document
            rule = rule or _missing(cleaned)
            if rule is None:
                yield cleaned
            else:
                dropped[f"{name}: {rule}"] += 1

    return stage


def _changed(document: Document, change: Callable[[str], str]) -> Document:
    target = None if document.target is None else change(document.target)
    return document._replace(text=change(document.text), target=target)


def _missing(document: Document) -> str | None:
    if blank(document.text):
        return "no text left"
    return "no target left" if document.target is not None and blank(document.target) else None
