"""Windows, examples and chunks against lists of Python integers."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.finite.shards import Shards
from data_pipeline.finite.views import Chunks, Examples, Windows
from data_pipeline.finite.writer import IndexedWriter

FILL = -7


def write_shards(
    folder: Path, prefixes: list[list[int]], dtype: str = "uint16"
) -> tuple[Shards, list[list[list[int]]]]:
    """Prefixes of documents of the given lengths, with tokens that are all different."""
    token = iter(range(10**6))
    contents = [[[next(token) for _ in range(length)] for length in lengths] for lengths in prefixes]
    for number, documents in enumerate(contents):
        with IndexedWriter(folder / f"{number}", np.dtype(dtype), places=True) as writer:
            places = np.array([[number, 10 * i] for i in range(len(documents))]).reshape(-1, 2)
            writer.add([np.array(document, dtype=np.int64) for document in documents], places)
    return Shards([folder / f"{number}" for number in range(len(contents))]), contents


def reference_windows(contents: list[list[list[int]]], length: int, overlap: int) -> list[list[tuple[int, int, int]]]:
    """Each window as (token, document, place in it), by going through the stream token by token."""
    windows, base = [], 0
    for documents in contents:
        stream = [(t, base + d, i) for d, document in enumerate(documents) for i, t in enumerate(document)]
        base += len(documents)
        start = 0
        while start + overlap < len(stream):
            windows.append(stream[start : start + length])
            start += length - overlap
    return windows


LENGTHS = st.lists(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 40)), max_size=12), min_size=1, max_size=4)


@given(prefixes=LENGTHS, length=st.integers(1, 20), data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows(tmp_path: Path, prefixes: list[list[int]], length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    shards, contents = write_shards(tmp_path, prefixes)
    windows = Windows(shards, length, overlap)
    expected = reference_windows(contents, length, overlap)
    assert len(windows) == len(expected)
    indices = np.array(data.draw(st.permutations(range(len(expected)))), dtype=np.int64)
    tokens, lengths = windows.gather(indices, fill=FILL)
    segments = windows.segments(indices)
    held = windows.documents(indices)
    assert tokens.shape == segments.shape == (len(expected), length)
    assert (tokens.dtype, segments.dtype, lengths.dtype) == (np.int64, np.int32, np.int64)
    for row, index in enumerate(indices):
        window = expected[index]
        assert lengths[row] == len(window)
        assert tokens[row].tolist() == [token for token, _, _ in window] + [FILL] * (length - len(window))
        seen = list(dict.fromkeys(document for _, document, _ in window))
        numbers = [seen.index(document) for _, document, _ in window]
        assert segments[row].tolist() == numbers + [numbers[-1]] * (length - len(window))
        assert (held.first[row], held.offset[row], held.last[row]) == (*window[0][1:], window[-1][1])
    if overlap == 0:
        assert sorted(tokens[tokens != FILL].tolist()) == list(range(shards.token_count))


def test_windows_of_larger_sets_in_int32(tmp_path: Path) -> None:
    draw = random.Random(0)
    prefixes = [[draw.choice([0, 1, 2, 300, 5000]) for _ in range(700)] for _ in range(2)]
    shards, contents = write_shards(
        tmp_path, [lengths[: 60 if i else 700] for i, lengths in enumerate(prefixes)], "int32"
    )
    windows, expected = Windows(shards, 129, 1), reference_windows(contents, 129, 1)
    indices = np.array(draw.sample(range(len(expected)), 200))
    tokens, lengths = windows.gather(indices, dtype=np.int32)
    segments = windows.segments(indices)
    assert tokens.dtype == np.int32
    for row, index in enumerate(indices):
        count = lengths[row]
        assert tokens[row, :count].tolist() == [token for token, _, _ in expected[index]]
        changes = [a[1] != b[1] for a, b in zip(expected[index], expected[index][1:], strict=False)]
        assert np.diff(segments[row, :count]).astype(bool).tolist() == changes
        assert np.diff(segments[row]).max(initial=0) <= 1


def test_no_window_for_no_indices_and_none_out_of_range(tmp_path: Path) -> None:
    windows = Windows(write_shards(tmp_path, [[5, 6]])[0], 4, 1)
    none = np.array([], dtype=np.int64)
    assert windows.gather(none)[0].shape == windows.segments(none).shape == (0, 4)
    assert len(windows.documents(none).first) == 0
    for index in (-1, len(windows)):
        with pytest.raises(IndexError, match="range"):
            windows.gather(np.array([0, index]))
    with pytest.raises(ValueError, match="cannot overlap by 4"):
        Windows(windows.shards, 4, 4)


@given(prefixes=LENGTHS, length=st.integers(1, 20))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks(tmp_path: Path, prefixes: list[list[int]], length: int) -> None:
    shards, contents = write_shards(tmp_path, prefixes)
    documents = [document for of in contents for document in of]
    expected = [
        (number, start, document[start : start + length])
        for number, document in enumerate(documents)
        for start in range(0, len(document), length)
    ]
    chunks = Chunks(shards, length)
    assert len(chunks) == len(expected)
    found = [chunks.get(index) for index in range(len(chunks))]
    assert [(number, offset, tokens.tolist()) for number, offset, tokens in found] == expected
    assert [chunks.document(number).tolist() for number in range(len(documents))] == documents


def test_chunks_without_the_token_that_ends_documents(tmp_path: Path) -> None:
    end = 9
    documents = [[1, 2, 3, 4, end], [end], [5, 6, end, 7, end], [1, end]]
    for name, contents in (("ended", documents), ("bare", [ids[:-1] for ids in documents])):
        with IndexedWriter(tmp_path / name, np.dtype("int32")) as writer:
            writer.add([np.array(ids) for ids in contents])
    chunks = Chunks(Shards([tmp_path / "ended", tmp_path / "bare"]), 2, end)
    found = [(number, offset, tokens.tolist()) for number, offset, tokens in map(chunks.get, range(len(chunks)))]
    expected = [(0, 0, [1, 2]), (0, 2, [3, 4]), (2, 0, [5, 6]), (2, 2, [end, 7]), (3, 0, [1])]
    assert found == [*expected, *((number + 4, *rest) for number, *rest in expected)]


def test_chunks_of_many_documents(tmp_path: Path) -> None:
    lengths = [[random.Random(i).randint(0, 9) for i in range(5000)], [3] * 1024, [], [7] * 1025]
    shards, _ = write_shards(tmp_path, lengths)
    chunks = Chunks(shards, 4)
    flat = [length for of in lengths for length in of]
    expected = [(number, start) for number, length in enumerate(flat) for start in range(0, length, 4)]
    assert len(chunks) == len(expected)
    assert [chunks.get(i)[:2] for i in range(0, len(expected), 7)] == expected[::7]
    with pytest.raises(IndexError, match="range"):
        chunks.get(len(chunks))


def test_examples_and_their_places(tmp_path: Path) -> None:
    shards, contents = write_shards(tmp_path, [[3, 0, 5, 1], [], [2, 2]])
    documents = [document for of in contents for document in of]
    singles, pairs = Examples(shards), Examples(shards, 2)
    assert [example.tolist() for i in range(len(singles)) for example in singles.get(i)] == documents
    assert [[part.tolist() for part in pairs.get(i)] for i in range(len(pairs))] == [
        documents[0:2],
        documents[2:4],
        documents[4:6],
    ]
    for index in (-1, 3):
        with pytest.raises(IndexError, match="range"):
            pairs.get(index)
    with pytest.raises(ValueError, match=r"4 documents, which do not make examples of 3"):
        Examples(shards, 3)


def test_the_digest_sees_contents_and_order_but_no_names(tmp_path: Path) -> None:
    shards, _ = write_shards(tmp_path, [[3, 4], [5]])
    digests = {shards.digest}
    for name in ("0", "1"):
        for ending in ("bin", "idx", "places"):
            (tmp_path / f"{name}.{ending}").rename(tmp_path / f"moved{name}.{ending}")
    moved = [tmp_path / "moved0", tmp_path / "moved1"]
    assert Shards(moved).digest == shards.digest
    digests |= {Shards(moved[::-1]).digest, Shards(moved[:1]).digest}
    data = bytearray((tmp_path / "moved1.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "moved1.bin").write_bytes(data)
    digests.add(Shards(moved).digest)
    assert len(digests) == 4


def test_no_prefix_and_cut_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.bin/\.idx prefix is given"):
        Shards([])
    write_shards(tmp_path, [[3, 4]])
    (tmp_path / "0.places").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"0\.places has 8 bytes, but .*0\.idx has 2 documents, which need 32"):
        Shards([tmp_path / "0"])
