"""Packers against the plain stream of tokens, and from any place on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.objectives.packing import (
    DocumentPacker,
    Packer,
    Place,
    SentencePairPacker,
    TokenizedDocument,
    WindowPacker,
)
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.tokenizer import BytesTokenizer

EOS = 2
LENGTHS = st.lists(st.integers(0, 23), min_size=2, max_size=12).filter(lambda lengths: sum(n > 0 for n in lengths) > 1)


class Documents:
    """Documents of the given lengths, over and over; token j of document i is 100 i + j + 10."""

    def __init__(self, lengths: list[int], start: Place = Place()) -> None:  # noqa: B008
        self.lengths = lengths
        self.at = start.epoch * len(lengths) + max(0, start.position)

    def next(self) -> TokenizedDocument:
        self.at += 1
        return self._document(self.at - 1)

    def other_than(self, document: int) -> TokenizedDocument | None:
        ahead = (self._document(self.at + i) for i in range(8))
        return next((found for found in ahead if found.document != document and len(found.tokens) > 2), None)

    def _document(self, at: int) -> TokenizedDocument:
        epoch, i = divmod(at, len(self.lengths))
        text = 100 * i + np.arange(self.lengths[i]) + 10
        return TokenizedDocument(epoch, 0, i, 0, i, np.array([EOS, *text, EOS], dtype=np.int32), (text[::-1],))


def stream(lengths: list[int], tokens: int) -> list[int]:
    found = [EOS]
    while len(found) < tokens:
        for i, length in enumerate(lengths):
            found += [*(100 * i + np.arange(length) + 10).tolist(), EOS]
    return found[:tokens]


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, window=st.integers(2, 40), overlap=st.integers(0, 1), stop=st.integers(0, 12))
def test_windows_are_cut_from_the_stream(lengths: list[int], window: int, overlap: int, stop: int) -> None:
    packer: Packer = WindowPacker(Documents(lengths), 0, window, overlap)
    whole = stream(lengths, 20 * window + 1)[1 - overlap :]
    for number in range(15):
        if number == stop:
            place = packer.place
            packer = WindowPacker(Documents(lengths, place), place.token, window, overlap)
        sample = packer.next(number)
        start = number * (window - overlap)
        assert sample.tokens.tolist() == whole[start : start + window]
        at = 0
        for piece in sample.pieces:
            text = [EOS, *(100 * piece.document + np.arange(lengths[piece.document]) + 10).tolist(), EOS]
            assert sample.tokens[at : at + piece.length].tolist() == text[piece.start : piece.start + piece.length]
            at += piece.length
        assert at == window


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, room=st.integers(2, 30), short=st.floats(0, 1), stop=st.integers(0, 12), key=st.integers(0, 99))
def test_sentence_pairs_go_through_every_document(
    lengths: list[int], room: int, short: float, stop: int, key: int
) -> None:
    packer: Packer = SentencePairPacker(Documents(lengths), 0, room, short, (key,))
    read: list[int] = []
    for number in range(30):
        if number == stop:
            place = packer.place
            packer = SentencePairPacker(Documents(lengths, place), place.token, room, short, (key,))
        sample = packer.next(number)
        first, second = sample.tokens[: sample.split].tolist(), sample.tokens[sample.split :].tolist()
        assert len(first) >= 1
        assert len(first) + len(second) <= room
        assert EOS not in first + second
        assert {token // 100 for token in first} == {sample.pieces[0].document}
        assert second == list(range(second[0], second[0] + len(second))) if second else sample.label == -1
        if sample.label == 1:
            assert second[0] // 100 != first[0] // 100
        elif sample.label == 0:
            assert second[0] == first[-1] + 1
        # Only a part that was lent comes again.
        read += first if sample.label == 1 else first + second
    expected = [token for token in stream(lengths, len(read) * 3 + 99) if token != EOS]
    assert read == expected[: len(read)]


def test_half_of_the_sentence_pairs_are_of_two_documents() -> None:
    packer = SentencePairPacker(Documents([400, 300, 500]), 0, 60, 0.1, (1,))
    samples = [packer.next(number) for number in range(600)]
    assert 0.45 < sum(sample.label for sample in samples) / 600 < 0.55
    full = [len(sample.tokens) == 60 for sample in samples]
    assert 0.75 < sum(full) / 600 < 0.95


def test_pairs_are_a_document_and_its_target() -> None:
    packer = DocumentPacker(Documents([3, 5]), 0, Seq2SeqObjective().build(BytesTokenizer(), 8, 0).sample)
    sample = packer.next(0)
    assert (sample.tokens.tolist(), sample.split) == ([10, 11, 12, 12, 11, 10], 3)
    assert packer.place == Place(0, 0, 1, 0)
