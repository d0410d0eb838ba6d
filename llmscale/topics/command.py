"""`llmscale topics`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.base.durable import json_bytes, replace_file
from data_pipeline.base.errors import UserError
from llmscale.embeddings.files import read_vectors
from llmscale.embeddings.texts import Texts
from llmscale.topics.clusters import require_enough
from llmscale.topics.found import Topics, as_json, find_topics
from llmscale.topics.page import render

JSON_FILE, TEXTS_FILE, PAGE_FILE, VECTORS_FILE = "topics.json", "texts.jsonl", "index.html", "embeddings.npy"


def number_of(topics: str) -> int | None:
    """How many topics `--topics` asks for; None: auto.

    Raises:
        UserError: it is neither auto nor a number of 2 or more.
    """
    if topics == "auto":
        return None
    if not topics.isdecimal() or int(topics) < 2:
        raise UserError(f"--topics is {topics!r}, but must be auto or a number of 2 or more; give one")
    return int(topics)


def write_topics(
    source: str,
    given: Texts,
    output: Path,
    topics: int | None,
    vectors: Path | Callable[[Path], object],
    *,
    terms: int = 10,
    seed: int = 0,
) -> list[str]:
    """Find topics and write `topics.json`, `texts.jsonl` (the topic of each text) and `index.html` into a folder.

    Args:
        source: what the texts are called.
        vectors: a file of them, or what writes one at a path in the folder.

    Returns:
        What was found, in lines.

    Raises:
        UserError: as `read_vectors` and `find_topics`, or a folder that cannot be written.
    """
    require_enough(len(given.texts), topics)  # before a model reads them
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make {output} ({error.strerror}); name another folder") from None
    if not isinstance(vectors, Path):
        path = output / VECTORS_FILE
        vectors(path)
        vectors = path
    found = find_topics(
        given.texts, read_vectors(vectors, len(given.texts)), topics, labels=given.labels, terms=terms, seed=seed
    )
    about = {"input": source, "embeddings": str(vectors), "seed": seed, "asked": topics or "auto"}
    replace_file(output / JSON_FILE, json_bytes(as_json(found, given.texts, about)))
    replace_file(output / TEXTS_FILE, _rows(found, given))
    replace_file(output / PAGE_FILE, render(found, given.texts, source).encode())
    return [*_lines(found), f"{output / PAGE_FILE}: {_figures(found)}"]


def _rows(found: Topics, given: Texts) -> bytes:
    labels: list[str | None] = [*given.labels] if given.labels else [None] * len(given.texts)
    plane = np.round(found.map, 4).tolist()
    rows = (
        {"text": text, "topic": topic, "map": place} | ({} if label is None else {"label": label})
        for text, topic, place, label in zip(given.texts, found.of_texts, plane, labels, strict=True)
    )
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _lines(found: Topics) -> list[str]:
    return [
        f"{topic.number:>4} {topic.size:>7,}  {', '.join(word for word, _ in topic.terms)}" for topic in found.topics
    ]


def _figures(found: Topics) -> str:
    parts = [f"{len(found.topics)} topics of {len(found.of_texts):,} texts"]
    if found.coherence is not None:
        parts.append(f"coherence {found.coherence:.3f}")
    if found.purity is not None:
        parts.append(f"purity {found.purity:.3f}")
    return ", ".join(parts)
