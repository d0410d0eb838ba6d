"""An item of an evaluation, as text: what a model is given, and what is scored after it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Item:
    """One question of a task. Which fields are used depends on the kind of the task."""

    number: int
    """Its place in the task, from 0."""
    contexts: tuple[str, ...] = ("",)
    """What stands before the answers, few-shot examples included: one text for all, or one for each answer. "" is the
    beginning of a document. For encoder-decoders it is the source."""
    answers: tuple[str, ...] = ()
    """Texts whose probability is asked for: the choices; the one continuation; the two sentences of a minimal pair; a
    text of which perplexity is measured. They begin with their own space where there is one: " Paris"."""
    neutral: str | None = None
    """A context without the question ("Answer:"), after which the answers are scored too; for PMI."""
    gold: tuple[int, ...] = ()
    """Places of the right answers among `answers`; of the right labels, in a task of kind classify."""
    references: tuple[str, ...] = ()
    """Right texts, where the model writes its answer or finds a span."""
    cluster: str | None = None
    """Items of one cluster (a passage, a document, a template) are not independent of each other."""
    group: str | None = None
    """What a mean over groups averages over, such as a subject or a domain."""
    scored_bytes: int | None = None
    """UTF-8 bytes of the source text that the answers stand for, where that is not their own length."""
    scored_words: int | None = None
    """Words of the source text, split at white space; for perplexity by word."""
    stream: str | None = None
    """Digest of the texts that it is joined with, where its score depends on them."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all that it says, its place excepted."""
        content = asdict(self) | {"number": None}
        if self.stream is None:  # as it was before there were any
            del content["stream"]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True, sort_keys=True).encode()).hexdigest()[:16]

    def context_of(self, answer: int) -> str:
        """The text before an answer."""
        return self.contexts[answer] if len(self.contexts) > 1 else self.contexts[0]
