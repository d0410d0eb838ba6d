"""The .bin/.idx files, byte by byte against a writer made from the layout alone, and damaged in every place."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.finite.format import BLOCK, IndexedDataset, token_dtype
from data_pipeline.finite.writer import IndexedWriter

CODES = {
    "uint8": (1, "B"),
    "int8": (2, "b"),
    "int16": (3, "h"),
    "int32": (4, "i"),
    "int64": (5, "q"),
    "uint16": (8, "H"),
}
DOCUMENTS = [[5, 6, 7], [], [8], [9, 10, 11, 12, 13], [14, 15]]


def by_layout(documents: list[list[list[int]]], dtype: str, bounds: list[int] | None = None) -> tuple[bytes, bytes]:
    """The bytes of .bin and .idx for documents of sequences, put together field by field."""
    code, letter = CODES[dtype]
    sequences = [sequence for document in documents for sequence in document]
    if bounds is None:
        bounds = [0]
        for document in documents:
            bounds.append(bounds[-1] + len(document))
    pointers, at = [], 0
    for sequence in sequences:
        pointers.append(at)
        at += len(sequence) * struct.calcsize(f"<{letter}")
    idx = b"MMIDIDX\0\0" + struct.pack("<Q", 1) + struct.pack("<B", code)
    idx += struct.pack("<Q", len(sequences)) + struct.pack("<Q", len(bounds))
    idx += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    idx += struct.pack(f"<{len(pointers)}q", *pointers) + struct.pack(f"<{len(bounds)}q", *bounds)
    flat = [token for sequence in sequences for token in sequence]
    return struct.pack(f"<{len(flat)}{letter}", *flat), idx


def store(prefix: Path, files: tuple[bytes, bytes]) -> Path:
    Path(f"{prefix}.bin").write_bytes(files[0])
    Path(f"{prefix}.idx").write_bytes(files[1])
    return prefix


def stored(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def contents(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset.document(i).tolist() for i in range(dataset.document_count)]


def write(prefix: Path, documents: list[list[int]], dtype: str = "uint16") -> Path:
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        writer.add([np.array(document, dtype=np.int64) for document in documents])
    return prefix


@given(data=st.data(), dtype=st.sampled_from(sorted(CODES)), cuts=st.lists(st.integers(0, 30), max_size=3))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_written_bytes_are_those_of_the_layout_and_read_back(
    tmp_path: Path, data: st.DataObject, dtype: str, cuts: list[int]
) -> None:
    limits = np.iinfo(dtype)
    token = st.integers(int(limits.min), int(limits.max))
    documents = data.draw(st.lists(st.lists(token, max_size=6), max_size=30))
    with IndexedWriter(tmp_path / "set", np.dtype(dtype)) as writer:
        edges = [0, *sorted(cuts), len(documents)]
        for start, stop in pairwise(edges):
            writer.add([np.array(document, dtype=np.int64) for document in documents[start:stop]])
    assert stored(tmp_path / "set") == by_layout([[document] for document in documents], dtype)
    assert contents(tmp_path / "set") == documents
    owners = [i for i, document in enumerate(documents) for _ in document]
    dataset = IndexedDataset(tmp_path / "set")
    assert dataset.documents_at(np.arange(len(owners))).tolist() == owners
    assert dataset.dtype == np.dtype(dtype)


def test_documents_of_many_blocks_are_found(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(0, 4, BLOCK + 5000)
    with IndexedWriter(tmp_path / "a", np.uint8) as writer:
        for part in np.array_split(lengths, 7):
            flat = np.zeros(part.sum(), dtype=np.uint8)
            writer.add(np.split(flat, np.cumsum(part)[:-1]))
    with IndexedWriter(tmp_path / "b", np.uint8) as writer:
        writer.append(tmp_path / "a")
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    dataset = IndexedDataset(tmp_path / "b")
    tokens = np.random.default_rng(1).integers(0, lengths.sum(), 2000)
    expected = np.repeat(np.arange(len(lengths)), lengths)[tokens]
    assert (dataset.documents_at(tokens) == expected).all()
    assert (dataset.lengths(100, 90_000) == lengths[100:90_000]).all()


def test_documents_of_several_sequences_are_read_whole(tmp_path: Path) -> None:
    documents = [[[1, 2], [3]], [[]], [], [[4], [5, 6], [7]], []]
    store(tmp_path / "split", by_layout(documents, "int32"))
    assert contents(tmp_path / "split") == [[1, 2, 3], [], [], [4, 5, 6, 7], []]
    dataset = IndexedDataset(tmp_path / "split.idx")
    assert dataset.documents_at(np.arange(7)).tolist() == [0, 0, 0, 3, 3, 3, 3]
    with IndexedWriter(tmp_path / "joined", np.int32) as writer:
        writer.append(tmp_path / "split")
        writer.add([np.array([9])])
        writer.append(tmp_path / "split")
    assert stored(tmp_path / "joined") == by_layout([*documents, [[9]], *documents], "int32")


def test_sets_that_lost_their_document_bounds_in_a_merge_have_a_document_a_sequence(tmp_path: Path) -> None:
    files = by_layout([[document] for document in DOCUMENTS], "uint16", bounds=[0])
    assert contents(store(tmp_path / "merged", files)) == DOCUMENTS


def test_multimodal_sets_are_read_where_all_is_text(tmp_path: Path) -> None:
    data, idx = by_layout([[document] for document in DOCUMENTS], "int32")
    assert contents(store(tmp_path / "text", (data, idx + bytes(len(DOCUMENTS))))) == DOCUMENTS
    store(tmp_path / "images", (data, idx + b"\0\0\0\1\0"))
    with pytest.raises(UserError, match=r"images\.idx has sequences of mode 1, but text has mode 0"):
        IndexedDataset(tmp_path / "images")


HEADER_DAMAGE = {
    "magic": (0, b"X", r"begins with b'XMIDIDX\\x00\\x00', but a Megatron index with b'MMIDIDX"),
    "older format": (0, b"TNTIDX\0\0\0", "fairseq's older format"),
    "version": (9, struct.pack("<Q", 2), "version 2, but only version 1"),
    "unknown dtype": (17, b"\x09", r"dtype code 9 \(none\)"),
    "float": (17, b"\x06", r"dtype code 6 \(a floating-point type\)"),
    "other width": (17, b"\x04", "sequence 1 at byte 6, but the ones before it end at byte 12"),
    "sequences": (18, struct.pack("<Q", 6), r"header's 6 sequences and 6 document bounds need 154"),
    "huge": (18, struct.pack("<Q", 2**63), "need"),
    "bounds": (26, struct.pack("<Q", 7), r"header's 5 sequences and 7 document bounds need 150"),
    "length": (34, struct.pack("<i", 4), "sequence 1 at byte 6, but the ones before it end at byte 8"),
    "negative length": (38, struct.pack("<i", -1), "gives sequence 1 the length -1, below 0"),
    "last length": (50, struct.pack("<i", 3), r"set\.bin has 22 bytes, but .*set\.idx describes 24"),
    "first pointer": (54, struct.pack("<q", 2), "sequence 0 at byte 2, but the ones before it end at byte 0"),
    "pointer": (78, struct.pack("<q", 6), "sequence 3 at byte 6, but the ones before it end at byte 8"),
    "first bound": (94, struct.pack("<q", 1), "first document begin at sequence 1, not 0"),
    "bound": (110, struct.pack("<q", 0), "document 1 begin at sequence 1 and end at 0, before it"),
    "last bound": (134, struct.pack("<q", 4), "last document end at sequence 4, but has 5 sequences"),
}


@pytest.mark.parametrize("case", HEADER_DAMAGE)
def test_every_wrong_field_is_named(tmp_path: Path, case: str) -> None:
    place, damage, message = HEADER_DAMAGE[case]
    write(tmp_path / "set", DOCUMENTS)
    path = tmp_path / "set.idx"
    data = bytearray(path.read_bytes())
    data[place : place + len(damage)] = damage
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        IndexedDataset(tmp_path / "set")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_of_header_lengths_and_pointers_is_found(tmp_path: Path) -> None:
    write(tmp_path / "set", DOCUMENTS)
    path = tmp_path / "set.idx"
    whole = path.read_bytes()
    for bit in range(8 * (34 + 12 * len(DOCUMENTS))):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(UserError, match="set"):
            IndexedDataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["set.bin", "set.idx"])
def test_cut_and_lengthened_files_are_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / "set", DOCUMENTS * 4)
    path = tmp_path / name
    whole = path.read_bytes()
    for size in {*np.linspace(0, len(whole) - 1, 20).astype(int).tolist(), len(whole) + 1, len(whole) + 2}:
        path.write_bytes((whole + b"\0\0")[:size])
        with pytest.raises(UserError, match=rf"{name} has {size} bytes"):
            IndexedDataset(tmp_path / "set")


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent\.idx: No such file"):
        IndexedDataset(tmp_path / "absent")
    write(tmp_path / "set", DOCUMENTS)
    (tmp_path / "set.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*set\.bin: No such file"):
        IndexedDataset(tmp_path / "set")
    (tmp_path / "folder.idx").mkdir()
    with pytest.raises(UserError, match=r"folder\.idx"):
        IndexedDataset(tmp_path / "folder")


@pytest.mark.parametrize("bad", [65536, -1])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, bad: int) -> None:
    write(tmp_path / "set", DOCUMENTS)
    before = stored(tmp_path / "set")
    with pytest.raises(ValueError, match=rf"token ids {bad} to {bad} do not fit uint16"):
        with_two_batches(tmp_path / "set", [1, 2], [bad])
    assert stored(tmp_path / "set") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.bin", "set.idx"]


def with_two_batches(prefix: Path, *batches: list[int]) -> None:
    with IndexedWriter(prefix, np.uint16) as writer:
        for batch in batches:
            writer.add([np.array(batch)])


def test_joining_other_dtypes_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "wide", DOCUMENTS, "int32")
    with (
        pytest.raises(UserError, match=r"wide\.idx has dtype int32, but .*set\.idx has uint16"),
        IndexedWriter(tmp_path / "set", np.uint16) as writer,
    ):
        writer.append(tmp_path / "wide")


def test_vocabularies_are_stored_as_megatron_stores_them() -> None:
    assert [token_dtype(size).name for size in (259, 65499, 65500, 250_000)] == ["uint16", "uint16", "int32", "int32"]
