"""One token per byte."""

from __future__ import annotations

import numpy as np

from data_pipeline.tokenizer.base import StoredTokenizer

FIRST = 3
"""Token of byte 0."""


class BytesTokenizer(StoredTokenizer):
    """One token per UTF-8 byte: byte b is token b + 3, after pad, bos and eos."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__({}, "the bytes tokenizer", FIRST + 256, {"pad": 0, "bos": 1, "eos": 2})

    def token_id(self, text: str) -> int | None:
        return next((token for token in range(self._own_size) if self._own_text(token) == text), None)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + FIRST for text in texts]

    def _decode(self, tokens: list[int]) -> str:
        return bytes(token - FIRST for token in tokens).decode(errors="replace")

    def _own_text(self, token: int) -> str:
        return ("<pad>", "<s>", "</s>")[token] if token < FIRST else f"<0x{token - FIRST:02X}>"

    def _bytes_of(self, token: int) -> bytes | bool:
        return bytes([token - FIRST])

    def _spell(self, text: str) -> list[int]:
        return [byte + FIRST for byte in text.encode()]
