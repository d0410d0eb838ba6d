"""What an evaluation leaves: a folder for each task with a line for each item, from which every metric is computed.

    meta.json      what was evaluated, how: see `Meta`
    items.jsonl    a `Record` a line, in the order of the task's items
    questions.json the text of each item's question, for people who look at items; nothing is computed from it
    seen.json      what a run was trained on of them, where that was looked for: see `contamination`

Lines are only ever added, and a line depends on the weights and on its item alone, so that an evaluation which was
killed at any instant goes on behind the last whole line and ends with the same bytes. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.reading.item import Item
from llmscale.evaluate.contamination.seen_items import Seen

META_FILE = "meta.json"
ITEMS_FILE = "items.jsonl"
QUESTIONS_FILE = "questions.json"


@dataclass(frozen=True)
class Answer:
    """The probability of one text after its context."""

    ids: list[int]
    """Its token ids."""
    spans: list[tuple[int, int]]
    """The bytes of the text that each token covers, [start, end) in UTF-8; a token that begins in the context starts
    below 0."""
    log_probabilities: list[float]
    """Of each token after all those before it (hidden in turn, for encoders), in nats."""
    greedy: list[bool]
    """Whether each was the most probable token."""
    bytes: int
    """Length of the text in UTF-8."""
    characters: int
    """Length of the text in Unicode code points."""

    @property
    def total(self) -> float:
        """Log-probability of the text, in nats."""
        return sum(self.log_probabilities)


@dataclass(frozen=True)
class Record:
    """What came of one item."""

    number: int
    """The item's place in the task, from 0."""
    item: str
    """The item's digest: records of two artefacts are about the same question where these are equal."""
    answers: list[Answer] = field(default_factory=list)
    """As many as the item has answers."""
    neutral: list[float] = field(default_factory=list)
    """Log-probability of each answer after the neutral context, in nats; for PMI."""
    gold: list[int] = field(default_factory=list)
    """Places of the right answers, or of the right labels."""
    references: list[str] = field(default_factory=list)
    """Right texts."""
    generated: list[str] = field(default_factory=list)
    """What the model wrote (one text, or k samples), or the span that it found."""
    probabilities: list[float] = field(default_factory=list)
    """Of each label, from a fine-tuned head."""
    cluster: str | None = None
    group: str | None = None
    scored_bytes: int | None = None
    """UTF-8 bytes of the source text, where that is not the answers' own length."""
    scored_words: int | None = None
    """Words of the source text, split at white space; for perplexity by word."""
    flags: list[str] = field(default_factory=list)
    """`windowed`: longer than the model's context, read in windows. From `seen.json`, of what was found of it in what a
    run was trained on: `seen`, and `seen with answer`."""

    @classmethod
    def of(cls, item: Item, flags: Iterable[str], **found: Any) -> Record:
        """What was found of an item, with what is kept of the item itself."""
        return cls(
            number=item.number,
            item=item.digest,
            gold=list(item.gold),
            references=list(item.references),
            cluster=item.cluster,
            group=item.group,
            scored_bytes=item.scored_bytes,
            scored_words=item.scored_words,
            flags=list(flags),
            **found,
        )


@dataclass(frozen=True)
class Meta:
    """What an artefact is of. Everything that decides its lines is in it."""

    format: int
    task: str
    """Name of the task."""
    task_digest: str
    """Of the task's file and of the texts of its items."""
    kind: str
    """Of the task."""
    metrics: list[str]
    """Those that the task is shown by, the first before all."""
    items: int
    """How many the task has; fewer lines than that are an evaluation that was interrupted."""
    limited: int | None
    """Where only so many of the task's items are taken (`--limit`)."""
    few_shot: int
    checkpoint: str
    """Path of the checkpoint."""
    model: str
    """Digest of the checkpoint's weights."""
    reading: str
    """Digest of the tokenizer and of the rules by which text becomes tokens."""
    scorer: str
    """How log-probabilities were made: causal, pseudo_likelihood, within_word_l2r, seq2seq, infill, head, generate."""
    exactness: str
    """`exact`: the same bits at any batch size, order and number of ranks; else the bound within which they are."""
    options: dict[str, Any] = field(default_factory=dict)
    """What else decides the lines, such as settings of generation."""


@dataclass(frozen=True)
class Artefact:
    """An evaluation that was read back."""

    path: str
    meta: Meta
    records: list[Record]
    seen: Seen | None = None
    """What a run was trained on of its items, where that was looked for."""
