"""A SentencePiece model as a tokenizer of the `tokenizers` library.

The file is a protocol buffer (sentencepiece_model.proto of the SentencePiece project) and is read here, since the
library does not give out all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.base.errors import UserError

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import normalizers

SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_IN_TEXT = (_NORMAL, _USER_DEFINED)


@dataclass
class Model:
    """What a `.model` file says."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    """Text, score and type of each piece."""
    algorithm: int = _UNIGRAM
    byte_fallback: bool = False
    unknown: int = 0
    charsmap: bytes = b""
    """The compiled normalisation."""
    dummy_prefix: bool = True
    """A space is put before the text."""
    remove_extra_spaces: bool = True
    """Spaces at the ends and repeated ones are dropped."""


def parse(contents: bytes) -> Model:
    """Read a `.model` file."""
    model = Model()
    for number, value in _fields(contents):
        if number == 1:
            parts = dict(_fields(_bytes(value)))
            text = _bytes(parts.get(1, b"")).decode()
            score = struct.unpack("<f", _bytes(parts.get(2, b"\0\0\0\0")))[0]
            model.pieces.append((text, score, int(parts.get(3, 1))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
            model.algorithm = int(trainer.get(3, _UNIGRAM))
            model.byte_fallback = bool(trainer.get(35, 0))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
            model.charsmap = _bytes(normalizer.get(2, b""))
            model.dummy_prefix = bool(normalizer.get(3, 1))
            model.remove_extra_spaces = bool(normalizer.get(4, 1))
    model.unknown = next(index for index, (_, _, kind) in enumerate(model.pieces) if kind == _UNKNOWN)
    return model


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a protocol buffer's message: integers, or bytes of anything else."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        size = varint() if size is None else size
        yield key >> 3, data[place : place + size]
        place += size


def _bytes(value: bytes | int) -> bytes:
    assert isinstance(value, bytes)
    return value


def as_library_tokenizer(contents: bytes, name: str, special: Collection[str] = ()) -> tokenizers.Tokenizer:
    """The same tokenizer for the `tokenizers` library, without roles.

    Args:
        special: texts of pieces that are to become special tokens, which the library takes out of a text before it
            normalises the rest, as SentencePiece does with user-defined symbols.

    Raises:
        UserError: an algorithm that the library does not have, or symbols that it would normalise.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    model = parse(contents)
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    symbols = [text for text, _, kind in model.pieces if kind == _USER_DEFINED]
    if model.algorithm == _UNIGRAM:
        _require_unchanged([text for text in symbols if text not in special], normalizers.Sequence(steps), name)
        made = Tokenizer(models.Unigram(_scores(model), unk_id=model.unknown, byte_fallback=model.byte_fallback))
        if model.byte_fallback and (never := _in_no_piece(model)):
            # A byte piece that a text spells would win over unknown characters; no other piece reaches over these.
            made.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{never}]"), "isolated")
    elif model.algorithm == _BPE:
        vocabulary = {text: index for index, (text, _, _) in enumerate(model.pieces)}
        unknown = model.pieces[model.unknown][0]
        made = Tokenizer(
            models.BPE(vocabulary, _merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
        )
        # Symbols are matched in the normalised text, where a space is the mark that they are spelled with.
        made.add_tokens([AddedToken(text, special=False, normalized=True) for text in symbols])
    else:
        raise UserError(
            f"{name} is a SentencePiece model of words or characters, which no tokenizer.json can hold;"
            f" give --no-tokenizer"
        )
    steps += [normalizers.Prepend(SPACE)] if model.dummy_prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*undo, *([decoders.Strip(" ", 1, 0)] if model.dummy_prefix else [])])
    made.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text, _, kind in model.pieces if kind == _CONTROL]
    )
    return made


def user_symbols(contents: bytes) -> list[str]:
    """The user-defined symbols of a `.model` file, in its spelling."""
    return [text for text, _, kind in parse(contents).pieces if kind == _USER_DEFINED]


def _require_unchanged(symbols: list[str], normalizer: normalizers.Normalizer, name: str) -> None:
    """SentencePiece takes user-defined symbols out of a text before it normalises the rest, the library afterwards."""
    for symbol in symbols:
        changed = normalizer.normalize_str(symbol)
        if changed != symbol:
            raise UserError(
                f"{name} is a Unigram model whose normalisation would make {changed!r} of its user-defined symbol"
                f" {symbol!r}, which no tokenizer.json can prevent; give --no-tokenizer to export without it"
            )


def _scores(model: Model) -> list[tuple[str, float]]:
    """Text and score of each piece of a Unigram model, such that the library's best split is SentencePiece's.

    SentencePiece splits text into normal pieces and user-defined symbols, whose score is 0.1 for each byte but the
    first (`EncodeOptimized` of its unigram_model.cc), where the library takes any piece of the vocabulary; and for both
    an unknown character has a score 10 below the lowest: of a normal piece there, of any piece here.
    """
    used = _used(model)
    lowest = min(score for _, score, kind in model.pieces if kind == _NORMAL)
    other = lowest
    if all(character in used for text in used for character in text):
        # Then all splits of a text have the same unknown characters, whose score so does not matter; and other pieces,
        # such as bytes, can get one so low that a text that spells them is rather split into its characters. In the few
        # other models it becomes the byte.
        longest = max(len(text) for text, _, kind in model.pieces if kind not in _IN_TEXT)
        other = -(abs(lowest) + 1) * (longest + 1)
    found = []
    for text, score, kind in model.pieces:
        symbol = float(np.float32(0.1 * (len(text.encode()) - 1)))  # in single precision, as there
        found.append((text, {_NORMAL: score, _USER_DEFINED: symbol}.get(kind, other)))
    return found


def _in_no_piece(model: Model) -> str:
    """The characters of byte pieces that no piece contains."""
    used = set("".join(_used(model)))
    return "".join(character for character in "<0123456789ABCDEFx>" if character not in used)


def _used(model: Model) -> set[str]:
    """The pieces that text is split into."""
    return {text for text, _, kind in model.pieces if kind in _IN_TEXT}


def _merges(model: Model) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best piece first: SentencePiece always merges the pair whose result
    has the highest score."""
    usable = {text: score for text, score, kind in model.pieces if kind not in (_CONTROL, _USER_DEFINED, _UNUSED)}
    found = [
        (-score, cut, text[:cut], text[cut:])
        for text, score in usable.items()
        for cut in range(1, len(text))
        if text[:cut] in usable and text[cut:] in usable
    ]
    return [(left, right) for _, _, left, right in sorted(found)]
