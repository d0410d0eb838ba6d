"""Documents that the Hugging Face `datasets` library streams, from the hub or through one of its builders.

One span is one shard and a position is a number of examples, so a resume reads the shard again up to that example:
about 0.6 s per 100,000 examples in the worst case, where own readers need one seek. Local JSON lines and Parquet
files are better read by kinds `jsonl` and `parquet`: the library splits no file between lanes, and gives up the rest
of a file after some malformed lines.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator
from typing import Any

import xxhash

from data_pipeline.base.errors import UserError, first_line
from data_pipeline.config import SourceConfig
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import FileEntry
from data_pipeline.sources.readers.base import ENDLESS, Block, RecentlyUsed, Span, no_records
from data_pipeline.sources.readers.extract import Extractor

EXAMPLES_PER_BLOCK = 1000
OPEN_SHARDS = 8
PROBED_BLOCKS = 16
"""Most blocks of examples that are looked at for the columns of a data set that does not tell them."""


class StreamedDataset:
    """A streamed data set and its shards."""

    def __init__(
        self,
        source: SourceConfig,
        index: int,
        where: str,
        span_bytes: int,
        fields: Fields,
        local: list[FileEntry],
    ) -> None:
        """Opens the data set, of `local` files where there are any. Raises UserError where it cannot be opened or
        lacks the field."""
        if not source.name:
            raise UserError(f"{where}.name is missing; kind datasets needs a hub name or a builder such as 'json'")
        self.name = source.name
        try:
            import datasets

            self.dataset: Any = datasets.load_dataset(
                source.name,
                source.subset,
                split=source.split,
                streaming=True,
                # The library takes names for patterns.
                **({"data_files": [glob.escape(file.path) for file in local]} if local else {}),
                # The default turns every string of a column into JSON where one row holds an object.
                **({"on_mixed_types": None} if source.name == "json" else {}),
            )
            columns = self.dataset.column_names or self._first_columns(fields.names)
        except Exception as error:  # the library raises its own, the file system's and the network's
            fix = f"repair the files of {where}.paths" if local else "name one that the datasets library opens here"
            raise UserError(f"{where}.name: cannot open data set {source.name!r}: {first_line(error)}; {fix}") from None
        fields.require(columns, f"data set {source.name!r}")
        self.shards: int = self.dataset.num_shards
        self.files, self.spans = self._table(source, index, local, span_bytes)

    def _first_columns(self, wanted: list[str]) -> list[str]:
        """The columns of the first examples, up to those that have all that are wanted; any example may lack some."""
        known: dict[str, None] = {}
        for batch in itertools.islice(self.dataset.iter(EXAMPLES_PER_BLOCK), PROBED_BLOCKS):
            known |= dict.fromkeys(batch)
            if all(name in known for name in wanted):
                break
        return list(known)

    def _table(
        self, source: SourceConfig, index: int, local: list[FileEntry], span_bytes: int
    ) -> tuple[list[FileEntry], list[Span]]:
        split = (self.dataset.info.splits or {}).get(source.split)
        total = sum(file.size for file in local) or (split.num_bytes if split else 0) or span_bytes * self.shards
        size = max(1, total // self.shards)
        known = xxhash.xxh64(f"{source.subset}\0{source.split}\0{self.shards}\0{total}".encode())
        for file in local:
            known.update(file.fingerprint.encode())
        files = [
            FileEntry(index, source.name or "", f"{source.name}/{source.split}/{shard}", size, known.hexdigest())
            for shard in range(self.shards)
        ]
        return files, [Span(shard, 0, ENDLESS, size) for shard in range(self.shards)]

    def shard(self, number: int) -> Any:
        """One shard as a data set of its own."""
        return self.dataset.shard(num_shards=self.shards, index=number)


class DatasetReader:
    """Reads shards in batches of 1,000 examples."""

    def __init__(self, extractor: Extractor, streamed: StreamedDataset) -> None:
        self.extractor = extractor
        self.streamed = streamed
        self._open: RecentlyUsed[tuple[int, int], Iterator[dict[str, list[Any]]]] = RecentlyUsed(OPEN_SHARDS)

    def read(self, file: FileEntry, span: Span, position: int) -> Block:
        shard = int(file.name.rpartition("/")[2])
        try:
            batches = self._open.take((shard, position))
            if batches is None:
                batches = iter(self.streamed.shard(shard).skip(position).iter(EXAMPLES_PER_BLOCK))
            batch = next(batches, None)
        except Exception as error:  # as above
            raise UserError(
                f"cannot read data set {self.streamed.name!r}: {first_line(error)}; repair it or leave it out"
            ) from None
        if batch is None:
            return no_records(None)

        def note(row: int, reason: str, detail: str) -> None:
            self.extractor.bad.note(reason, file.path, row, detail, row=row)

        count = len(next(iter(batch.values())))
        # A data set without a schema has the columns that the batch happens to have.
        columns = {name: batch.get(name, [None] * count) for name in self.extractor.fields.names}
        self._open.put((shard, position + count), batches)
        positions = list(range(position, position + count))
        return self.extractor.columns(positions, columns, note, position + count)

    def close(self) -> None:
        self._open.close()
