"""Damaged files of every format: a UserError or right records, in bounded time, and never anything else."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig
from data_pipeline.sources.corpus import Corpus
from tests.data_pipeline.sources.test_source_kinds import CASES

HANG_SECONDS = 20
Accepted = list[tuple[str, "str | None"]]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Flipped bits, a cut, bytes put in, overwritten or taken out; several of these at times."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        place = draw.randrange(len(changed) + 1)
        noise = draw.choice([draw.randbytes(draw.randint(1, 9)), b"\n", b'"', b"\0" * 8, b"\xff" * 4, b'{"text": "x"}'])
        match draw.randrange(5):
            case 0 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                del changed[place:]
            case 2:
                changed[place:place] = noise
            case 3:
                changed[place : place + len(noise)] = noise
            case _:
                del changed[place : place + draw.randint(1, 99)]
    return bytes(changed)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(path: Path, source: dict[str, Any], span_bytes: int) -> Accepted | None:
    """What is accepted; None where the file is refused."""
    try:
        found = Corpus([SourceConfig.model_validate({**source, "paths": [str(path)]})], span_bytes=span_bytes)
        documents = [(document.text, document.target) for document in found.documents()]
    except UserError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert "\n" not in said
        assert path.name in said or "holds no text" in said
        return None
    bad = sum(count for reason, count in found.dropped.items() if reason != "empty")
    assert bad == len(found.bad)
    # What a second reading finds, in other pieces, is the same.
    again = [document for span in found.spans for document in found.read(span, span.start)[0]]
    assert [(document.text, document.target) for document in again] == documents[: len(again)] or len(found.spans) > 1
    return documents


def decompressed(path: Path) -> bytes:
    """The bytes up to the damage, by the standard library and by Zstandard's own reader."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        stream: Any = gzip.GzipFile(fileobj=io.BytesIO(data))
    elif path.suffix == ".zst":
        stream = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
            io.BytesIO(data), read_across_frames=True, read_size=64
        )
    else:
        return data
    parts = []
    try:
        while part := stream.read(64):
            parts.append(part)
    except (OSError, EOFError, zstandard.ZstdError, ValueError, gzip.zlib.error):  # type: ignore[attr-defined]
        pass
    return b"".join(parts)


def no_number(name: str) -> float:
    """NaN and Infinity, which Python alone allows."""
    raise ValueError(name)


def whole_characters(text: str) -> str:
    """A text with U+FFFD in place of each surrogate that has no partner."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def json_accepts(path: Path) -> Accepted:
    found = []
    for line in decompressed(path).decode("utf-8-sig", errors="replace").split("\n"):
        try:
            row = json.loads(line, parse_constant=no_number)
            text, target = whole_characters(row["text"]), whole_characters(row["summary"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if text.strip() and target.strip():
            found.append((text, target))
    return found


def lines_accept(path: Path) -> Accepted:
    text = decompressed(path).decode("utf-8-sig", errors="replace")
    return [(line.rstrip("\r"), None) for line in text.split("\n") if line.strip()]


def delimiter_accepts(path: Path) -> Accepted:
    parts = decompressed(path).removeprefix(b"\xef\xbb\xbf").split(b"<|endoftext|>")
    return [(part.decode(errors="replace"), None) for part in parts if part.decode(errors="replace").strip()]


def tsv_accepts(path: Path) -> Accepted | None:
    header, *lines = decompressed(path).decode("utf-8-sig", errors="replace").split("\n")
    names = header.rstrip("\r").split("\t")
    if "\r" in "".join(lines) or "\r" in header or len(set(names)) < len(names) or "\0" in header + "".join(lines):
        return None
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines if len(line.split("\t")) == len(names)]
    return [(row["text"], row["summary"]) for row in rows if row["text"].strip() and row["summary"].strip()]


def csv_accepts(path: Path) -> Accepted | None:
    """Defined where the standard library finds nothing wrong."""
    text = decompressed(path).decode("utf-8-sig", errors="replace")
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError):
        return None
    if len(set(header)) < len(header) or "\0" in text or "\r" in text.replace("\r\n", ""):
        return None
    found = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return [(row["text"], row["summary"]) for row in found if row["text"].strip() and row["summary"].strip()]


def table_accepts(path: Path) -> Accepted | None:
    """Defined where pyarrow itself reads the whole file."""
    try:
        data = path.read_bytes()
        if data.startswith(b"PAR1"):
            table = pyarrow.parquet.read_table(path, columns=["text", "summary"])
        else:
            # The footer of an Arrow file only repeats what the messages before it say.
            stream = data[8:] if data.startswith(b"ARROW1") else data
            table = pyarrow.ipc.open_stream(stream).read_all().select(["text", "summary"])
        table.validate(full=True)
        rows = list(zip(table["text"].to_pylist(), table["summary"].to_pylist(), strict=True))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError):
        return None
    if not all(isinstance(text, str) for row in rows for text in row if text is not None):
        return None
    return [(text, target) for text, target in rows if text and target and text.strip() and target.strip()]


REFERENCES: dict[str, Callable[[Path], Accepted | None]] = {
    "lines": lines_accept,
    "delimiter": delimiter_accepts,
    "jsonl": json_accepts,
    "gzip": json_accepts,
    "zstd": json_accepts,
    "zstd in one frame": json_accepts,
    "zstd of unknown size": json_accepts,
    "csv": csv_accepts,
    "csv.gz": csv_accepts,
    "tsv": tsv_accepts,
    "parquet": table_accepts,
    "arrow file": table_accepts,
    "arrow stream": table_accepts,
    "arrow file, compressed": table_accepts,
    "arrow stream with dictionary": table_accepts,
    "arrow views and bytes": table_accepts,
}


def fuzz(folder: Path, names: list[str], seed: int, files: int) -> dict[str, int]:
    """How many of `files` damaged files were of each format."""
    draw = random.Random(seed)
    cases = {}
    for name in names:
        place = folder / name.replace(" ", "-")
        place.mkdir()
        case = CASES[name](place)
        [path] = place.iterdir()
        cases[name] = (case.source, path, path.read_bytes())
    tried = dict.fromkeys(names, 0)
    for number in range(files):
        name = draw.choice(names)
        source, path, data = cases[name]
        path.write_bytes(mutate(data, draw))
        with time_limit(HANG_SECONDS):
            accepted = read(path, source, draw.choice([50, 700, 1 << 20]))
        expected = REFERENCES[name](path) if accepted is not None else None
        if accepted is not None and expected is not None:
            compressed = path.suffix in (".gz", ".zst")
            assert matches(accepted, expected, compressed), f"{name}, seed {seed}, file {number}"
        tried[name] += 1
    return tried


def matches(accepted: Accepted, expected: Accepted, compressed: bool) -> bool:
    """Equal; of a damaged compressed file either reader may get further, by bytes that are not a whole record."""
    if not compressed:
        return accepted == expected
    shared = max(0, min(len(accepted), len(expected)) - 1)
    return accepted[:shared] == expected[:shared]


@pytest.mark.slow
def test_damaged_files_give_right_records_or_a_user_error(tmp_path: Path) -> None:
    tried = fuzz(tmp_path, list(REFERENCES), 3049073169, files=13_000)
    assert all(count > 20 for count in tried.values()), tried


def test_some_damaged_files(tmp_path: Path) -> None:
    assert all(fuzz(tmp_path, list(REFERENCES), 1, files=100).values())
