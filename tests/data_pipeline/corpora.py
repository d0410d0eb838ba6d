"""Small corpora of every kind, and the stream of one lane worked out the slow way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import xxhash

from data_pipeline.config import DataConfig
from data_pipeline.tokenizer import BytesTokenizer

WORDS = ["the", "cat", "sat;", "你好，世界", "déjà", "vu", "😀", "def f(x):\n    return", ""]


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [f"{seed}.{i} " + " ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for i in range(count)]


def write_files(folder: Path, documents: list[str]) -> dict[str, Any]:
    for i, text in enumerate(documents):
        path = folder / f"part{i % 3}" / f"{i:03d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return {"kind": "text", "paths": [f"{folder}/**/*.txt"]}


def write_lines(folder: Path, documents: list[str], files: int = 2) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        lines = [text.replace("\n", " ") + "\n" for text in documents[i::files]]
        (folder / f"{i}.txt").write_text("".join(lines), encoding="utf-8")
    return {"kind": "text", "document": "line", "paths": [f"{folder}/*.txt"]}


def write_jsonl(folder: Path, documents: list[str], files: int = 2) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        lines = [
            json.dumps({"n": n, "text": text}, ensure_ascii=n % 2 == 0) for n, text in enumerate(documents[i::files])
        ]
        (folder / f"{i}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return {"kind": "jsonl", "paths": [f"{folder}/*.jsonl"]}


def write_parquet(folder: Path, documents: list[str], rows_per_group: int = 7) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"id": list(range(len(documents))), "text": documents})
    pyarrow.parquet.write_table(table, folder / "rows.parquet", row_group_size=rows_per_group)
    return {"kind": "parquet", "paths": [f"{folder}/rows.parquet"]}


def write_datasets(folder: Path, documents: list[str], files: int = 12) -> dict[str, Any]:
    return {**write_jsonl(folder, documents, files), "kind": "datasets", "name": "json"}


WRITERS = {
    "files": write_files,
    "lines": write_lines,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "datasets": write_datasets,
}


def config(*sources: dict[str, Any], **settings: Any) -> DataConfig:
    defaults = {
        "sequence_length": 32,
        "lanes": 12,
        "span_bytes": 300,
        "shuffle_buffer": 36,
        "workers": 0,
        "tokenizer": {"kind": "bytes"},
    }
    return DataConfig.model_validate({"sources": list(sources), **defaults, **settings})


def bytes_tokenizer(folder: Path) -> Path:
    directory = folder / "tokenizer"
    directory.mkdir(exist_ok=True)
    BytesTokenizer().save(directory)
    return directory


def order(items: list[int], *key: int) -> list[int]:
    """`items` by a hash of each under a key: the permutation that the stream is defined by."""
    return sorted(items, key=lambda item: xxhash.xxh64_intdigest(f"{','.join(map(str, key))}:{item}".encode()))


def reference_lane(settings: DataConfig, seed: int, lane: int, samples: int) -> list[list[int]]:
    """The first samples of a lane for one source of JSON lines, with the byte tokenizer.

    Written from the definition alone: whole files in memory, one document list, one token list, no state.
    """
    eos = 2
    spans: list[tuple[int, list[str]]] = []
    for path in sorted(Path(settings.sources[0].paths[0]).parent.glob("*.jsonl")):
        data = path.read_bytes()
        count = -(-len(data) // settings.span_bytes)
        edges = [len(data) * i // count for i in range(count + 1)]
        contents: list[list[str]] = [[] for _ in range(count)]
        at = 0
        for line in data.split(b"\n"):
            if line:
                owner = max(i for i in range(count) if edges[i] <= at)
                contents[owner].append(json.loads(line)["text"])
            at += len(line) + 1
        spans += [(edges[i + 1] - edges[i], contents[i]) for i in range(count)]
    load = [0] * settings.lanes
    own: list[int] = []
    for index in order(list(range(len(spans))), seed, 0):
        lightest = load.index(min(load))
        load[lightest] += spans[index][0]
        if lightest == lane:
            own.append(index)
    tokens, epoch = [eos], 0
    length, block = settings.sequence_length, max(1, settings.shuffle_buffer // settings.lanes)
    while len(tokens) < (samples + block) * length + 1:
        for place in order(list(range(len(own))), seed, lane, 0, epoch):
            for text in spans[own[place]][1]:
                tokens += [byte + 3 for byte in text.encode()] + [eos]
        epoch += 1
    packed = [tokens[i * length : (i + 1) * length + 1] for i in range(samples + block)]
    result: list[list[int]] = []
    for number in range(-(-samples // block)):
        result += [packed[number * block + i] for i in order(list(range(block)), seed, lane, 0, number)]
    return result[:samples]
