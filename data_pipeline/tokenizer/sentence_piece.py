"""SentencePiece models: our own and those of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.roles import known_roles
from data_pipeline.tokenizer_kinds import MODEL_FILE

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

SPACE_MARK = "\u2581"
"""What SentencePiece writes for a space, so it cannot tell the two apart in a text."""
STAND_INS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))))
"""Characters that no text should have (Unicode Standard, section 23.7), then those of private use. Each has three bytes
in UTF-8, as the space mark."""


class SentencePieceTokenizer(StoredTokenizer):
    """A SentencePiece model (Kudo and Richardson 2018). Models that this project trains lose nothing; others may change
    the text by their own normalisation, drop repeated spaces, or lack some roles."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str = MODEL_FILE) -> None:
        """`model` is the contents of a `.model` file; `name` is for messages. Raises UserError if it is not one."""
        import sentencepiece

        try:
            if not model:
                raise RuntimeError("the library takes an empty model for none at all")
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._pieces: list[str] = self._processor.id_to_piece(list(range(self._processor.get_piece_size())))
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(f"{name} is not a SentencePiece model; give a .model file") from None
        processor = self._processor
        self._encode_one = encoder(processor)
        special = known_roles(self.token_id)
        # What the model itself declares counts for more than names; its unknown token always exists.
        declared = {"bos": processor.bos_id(), "eos": processor.eos_id(), "pad": processor.pad_id()}
        special |= {role: token for role, token in declared.items() if token >= 0}
        special["unk"] = processor.unk_id()
        self._mark = self._space_mark_bytes()
        self._prefixed = processor.encode("a", out_type=str)[0].startswith(SPACE_MARK)
        super().__init__({MODEL_FILE: model}, name, len(self._pieces), special)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._mark is None:
            return super().encode_batch(texts)
        marked = {i for i, text in enumerate(texts) if SPACE_MARK in text}
        encoded = super().encode_batch(["" if i in marked else text for i, text in enumerate(texts)])
        for i in marked:
            encoded[i] = self._encode_marked(texts[i])
        return encoded

    def token_id(self, text: str) -> int | None:
        token = self._processor.piece_to_id(text)
        return token if self._pieces[token] == text else None

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        # A call for each text, since one for several starts a thread; loader workers and ranks are the parallelism.
        return [self._encode_one(text) for text in texts]

    def _library_spans(self, text: str, ids: np.ndarray) -> np.ndarray | None:
        pieces = self._processor.encode(text, return_type="proto").pieces
        if [piece.id for piece in pieces] != ids.tolist():
            return None
        return np.array([(piece.begin, piece.end) for piece in pieces], dtype=np.int64).reshape(-1, 2)

    def _decode(self, tokens: list[int]) -> str:
        return self._processor.decode(tokens)

    def _own_text(self, token: int) -> str:
        return self._pieces[token]

    def _bytes_of(self, token: int) -> bytes | bool:
        piece = self._own_text(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        return self._processor.is_control(token) or piece.replace(SPACE_MARK, " ").encode()

    def _spell(self, text: str) -> list[int]:
        return [token for character in text for token in self._spell_character(character)]

    def _spell_character(self, character: str) -> list[int]:
        token = self.token_id(character)
        if token is not None:
            return [token]
        found = [self.token_id(f"<0x{byte:02X}>") for byte in character.encode()]
        return [self.special["unk"] if byte is None else byte for byte in found]

    def _encode_marked(self, text: str) -> np.ndarray:
        """A text with the space mark in it: the mark goes in as its three UTF-8 bytes, which decode to itself."""
        assert self._mark is not None
        if self.rules > 1 and self._prefixed and (found := self._encode_in_disguise(text)) is not None:
            return found
        first, *rest = super().encode_batch(text.split(SPACE_MARK))
        return np.concatenate([first, *(part for piece in rest for part in (self._mark, piece))])

    def _encode_in_disguise(self, text: str) -> np.ndarray | None:
        """What the library gives for a text with another character, unknown to the model, in place of the mark, but
        that character's bytes: for pieces of the text by themselves it would put a space in front of each. None where
        there is no such character."""
        stand_in = next((character for character in STAND_INS if character not in text), None)
        if stand_in is None:
            return None
        (ids,) = super().encode_batch([text.replace(SPACE_MARK, stand_in)])
        ids = ids.copy()
        bytes_of_it = [self.token_id(f"<0x{byte:02X}>") for byte in stand_in.encode()]
        windows = np.lib.stride_tricks.sliding_window_view(ids, 3) if len(ids) > 2 else np.empty((0, 3), np.int32)
        places = np.flatnonzero((windows == bytes_of_it).all(axis=1))
        if len(places) != text.count(SPACE_MARK):
            return None
        ids[places[:, None] + np.arange(3)] = self._mark
        return ids

    def _space_mark_bytes(self) -> np.ndarray | None:
        """Byte tokens of the space mark; None for models that change the text anyway (normalisation, prefix)."""
        probe = " a  b\n"
        ids = [self.token_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
        lossless = self._processor.decode(self._processor.encode(probe)) == probe
        return np.array(ids, dtype=np.int32) if lossless and None not in ids else None


def encoder(processor: SentencePieceProcessor) -> Callable[[str], np.ndarray]:
    """The library's `encode` to token ids for one text, int32, without its arguments' checks and dispatch in Python,
    which take a hundredth of the time of a document. The public method where a release has no such inner call, or one
    with other arguments or another result."""

    def public(text: str) -> np.ndarray:
        return processor.encode(text, return_type="numpy")

    try:
        inner = processor._processor._EncodeAsBuffer  # type: ignore[attr-defined]

        # In the order of `encode`: sampling, n-best size, alpha, begin token, end token, reversed.
        def direct(text: str) -> np.ndarray:
            return np.frombuffer(inner(text, False, -1, 0.1, False, False, False), np.int32)

        probe = f"An example, {SPACE_MARK}\u4e2d\u6587 1\n"
        return direct if np.array_equal(direct(probe), public(probe)) else public
    except (AttributeError, TypeError, ValueError):
        return public
