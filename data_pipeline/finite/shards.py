"""Several .bin/.idx prefixes read as one list of documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data_pipeline.base.durable import read_json
from data_pipeline.base.errors import UserError
from data_pipeline.finite.format import IndexedDataset, bin_path, idx_path

ENDS_BYTES = 1 << 16
READ_BYTES = 1 << 22


class Location(NamedTuple):
    """Where documents are; three arrays of one shape."""

    shard: np.ndarray
    """Number of the prefix."""
    local: np.ndarray
    """Number of the document in it."""


class Shards:
    """Prefixes in the order given. Documents are numbered through, from 0."""

    def __init__(self, prefixes: Sequence[str | Path]) -> None:
        """Opens and checks all prefixes.

        Raises:
            UserError: no prefix, or one whose files are missing or damaged.
        """
        if not prefixes:
            raise UserError("no .bin/.idx prefix is given; name at least one")
        self.datasets = [IndexedDataset(prefix) for prefix in prefixes]
        """One per prefix."""
        self.first_documents = offsets(dataset.document_count for dataset in self.datasets)
        """(prefixes + 1,) int64: number of each prefix's first document; the last entry is `document_count`."""
        self.document_count = int(self.first_documents[-1])
        """Documents of all prefixes, empty ones included."""
        self.token_count = sum(len(dataset.tokens) for dataset in self.datasets)
        """Tokens of all prefixes."""
        self._digest: str | None = None
        self._names: dict[int, list[str]] = {}

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that change when the contents do: xxh3 over each prefix's dtype, sizes, whole .idx and
        the first and last 64 KiB of its .bin. File names do not count. Reads every .idx on first use."""
        if self._digest is None:
            state = xxhash.xxh3_128()
            for dataset in self.datasets:
                state.update(f"{dataset.dtype.name} {len(dataset.tokens)} {dataset.document_count}\n".encode())
                with open(idx_path(dataset.prefix), "rb") as stream:
                    while block := stream.read(READ_BYTES):
                        state.update(block)
                with open(bin_path(dataset.prefix), "rb") as stream:
                    state.update(stream.read(ENDS_BYTES))
                    stream.seek(max(0, dataset.tokens.nbytes - ENDS_BYTES))
                    state.update(stream.read(ENDS_BYTES))
            self._digest = state.hexdigest()
        return self._digest

    def locate(self, documents: np.ndarray) -> Location:
        """The prefix and the number in it of documents of any shape; raises IndexError beyond the last one."""
        documents = np.asarray(documents)
        check_range(documents, self.document_count)
        shard = np.searchsorted(self.first_documents, documents, "right") - 1
        return Location(shard, documents - self.first_documents[shard])

    def document(self, number: int) -> np.ndarray:
        """The tokens of a document: a view of the file, not to be written to."""
        shard, local = self.locate(np.array(number))
        return self.datasets[int(shard)].document(int(local))

    def known(self, number: int, vocab_size: int) -> np.ndarray:
        """The same of a document all of whose ids are in a vocabulary.

        Raises:
            UserError: names the file, the place and the value of the first id that is not.
        """
        tokens = self.document(number)
        if not are_known(tokens, vocab_size):
            shard, local = self.locate(np.array(number))
            dataset = self.datasets[int(shard)]
            at = int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
            place = int(dataset.starts(local)) + at
            raise UserError(
                f"{bin_path(dataset.prefix)} holds id {tokens[at]} at token {place} of the file, in document"
                f" {int(local)}, but the tokenizer has ids 0 to {vocab_size - 1}; set data.tokenizer to the one that"
                f" the tokens were made with, or prepare them again"
            )
        return tokens

    def origin(self, number: int) -> tuple[str, int]:
        """The file that a document was made of and its position there; where the prefix does not say, its .bin file and
        the document's number in it."""
        shard, local = self.locate(np.array(number))
        dataset, files = self.datasets[int(shard)], self._files(int(shard))
        if dataset.places is not None:
            file, position = dataset.places[int(local)].tolist()
            if file < len(files):
                return files[file], position
        return str(bin_path(dataset.prefix)), int(local)

    def _files(self, shard: int) -> list[str]:
        """Names of the files that a prefix was made of, as `materialise` or `prepare` wrote them."""
        if shard not in self._names:
            prefix = self.datasets[shard].prefix
            record = read_json(Path(f"{prefix}.json")) or read_json(Path(prefix).with_name("meta.json"))
            self._names[shard] = record.get("files", []) if isinstance(record, dict) else []
        return self._names[shard]


def are_known(tokens: np.ndarray, vocab_size: int) -> bool:
    """Whether all ids, signed or not, are in range(vocab_size)."""
    if not tokens.size:
        return True
    if vocab_size > np.iinfo(tokens.dtype).max:
        return tokens.dtype.kind == "u" or int(tokens.min()) >= 0
    # Without their sign, those below 0 are above all others.
    return int(tokens.view(f"u{tokens.itemsize}").max()) < vocab_size


def offsets(counts: Iterable[int]) -> np.ndarray:
    """Running sums of some counts, from 0: (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, dtype=np.int64))]).astype(np.int64)


def check_range(numbers: np.ndarray, count: int) -> None:
    """Raise IndexError unless all numbers are in range(count)."""
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < count:
        raise IndexError(f"numbers {numbers.min()} to {numbers.max()} are not all in range({count})")
