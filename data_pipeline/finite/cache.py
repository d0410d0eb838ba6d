"""Documents to .bin/.idx prefixes: tokenised in batches, an eos after each text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.base.durable import read_json, write_json
from data_pipeline.base.errors import UserError
from data_pipeline.document import Document
from data_pipeline.finite.format import IndexedDataset, token_dtype
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.objectives.packing import Stored, encode_documents, stored_values
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import Frame, plain_frame

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 18


@dataclass
class Counts:
    """How much of something there is."""

    documents: int = 0
    """Documents of the source; a pair is one."""
    tokens: int = 0
    """Tokens, each eos included."""
    bytes: int = 0
    """UTF-8 bytes of the texts."""

    def add(self, other: Counts) -> None:
        """Add the numbers of `other`."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.bytes += other.bytes


class TokenizedText(NamedTuple):
    """A document of a source as what is stored of it."""

    document: Document
    arrays: list[np.ndarray]
    """Token ids with eos: of the text, and of the target of a pair."""

    @property
    def counts(self) -> Counts:
        """What it adds to the numbers of its set."""
        texts = [self.document.text, self.document.target or ""][: len(self.arrays) - len(self.document.values or ())]
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        return Counts(1, sum(map(len, self.arrays)), size)


def tokenized(
    documents: Iterable[Document], tokenizer: Tokenizer, stored: Stored, frame: Frame | None = None
) -> Iterator[list[TokenizedText]]:
    """Documents in batches of up to 256 (fewer when they are long), in order.

    Args:
        documents: with targets, where these are asked for.
        tokenizer: must have an eos.
        stored: what else to store of each; a target that is not wanted is left out.
        frame: the special tokens around each text; when not given, eos behind it.

    Raises:
        ValueError: a document without target where these are asked for.
    """
    frame = frame or plain_frame(tokenizer)
    begin, end = np.array(frame.begin, dtype=np.int32), np.array(frame.end, dtype=np.int32)
    for batch in _batches(documents):
        texts: list[str] = []
        for document in batch:
            if stored.target and document.target is None:
                where = f"the document at {document.position} of file {document.file}"
                raise ValueError(f"{where} has no target, but targets are stored")
            texts += [document.text, document.target or ""] if stored.target else [document.text]
        encoded = tokenizer.encode_batch(texts) if stored.target else encode_documents(tokenizer, batch)
        arrays = [np.concatenate([begin, ids, end]) for ids in encoded]
        step = 2 if stored.target else 1
        values = ([np.append(value, end) for value in stored_values(each.values, stored)] for each in batch)
        yield [
            TokenizedText(document, [*arrays[i * step : (i + 1) * step], *next(values)])
            for i, document in enumerate(batch)
        ]


def write_tokenized(writer: IndexedWriter, batch: Sequence[TokenizedText]) -> None:
    """Append a batch to a writer that keeps places; a pair becomes two consecutive documents."""
    places = [(text.document.file, text.document.position) for text in batch for _ in text.arrays]
    writer.add([array for text in batch for array in text.arrays], np.array(places, dtype=np.int64).reshape(-1, 2))


def materialise(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    prefix: str | Path,
    *,
    digest: str,
    stored: Stored = Stored(),  # noqa: B008
    frame: Frame | None = None,
    files: Sequence[str] = (),
) -> Counts:
    """Write documents as one prefix, in this process, unless it is there already.

    PREFIX.json says what the prefix was made of; it comes last. Several processes may do this at once, since all
    write the same.

    Args:
        documents: not touched where the prefix is there already.
        tokenizer: its digest counts too.
        prefix: where the files are to appear; the folder is made.
        digest: changes whenever the documents do, such as `Corpus.digest` and the side of the split.
        stored: what else is stored of each: with a target, document 2 i is the text of pair i and 2 i + 1 its target.
        frame: as in `tokenized`.
        files: paths by the documents' file numbers, which PREFIX.json keeps.

    Raises:
        UserError: what a reader of documents found wrong.
        OSError: names the file, if it cannot be written.
    """
    record = Path(f"{prefix}.json")
    key = hashlib.sha256(f"1 {digest} {tokenizer.digest} {stored.key}{frame.key if frame else ''}".encode()).hexdigest()
    known = _recorded(record, prefix, key)
    if known is not None:
        return known
    record.unlink(missing_ok=True)
    counts = Counts()
    with IndexedWriter(prefix, token_dtype(tokenizer.vocab_size), places=True) as writer:
        for batch in tokenized(documents, tokenizer, stored, frame):
            write_tokenized(writer, batch)
            for text in batch:
                counts.add(text.counts)
    write_json(record, {"digest": key, **asdict(counts), "files": list(files)})
    return counts


def _recorded(record: Path, prefix: str | Path, key: str) -> Counts | None:
    found = read_json(record)
    if not isinstance(found, dict) or found.pop("digest", None) != key:
        return None
    found.pop("files", None)
    try:
        IndexedDataset(prefix)
        return Counts(**found)
    except (UserError, TypeError):
        return None


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text) + len(document.target or "")
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
