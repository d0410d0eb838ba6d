"""Tokenizers that the `tokenizers` library runs: any `tokenizer.json`, GPT-2's and BERT's files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.byte_pairs import (
    SPARED_BYTES,
    Encode,
    byte_characters,
    fast_encoder,
    lacking_bytes,
    without_bytes,
)
from data_pipeline.tokenizer.roles import known_roles
from data_pipeline.tokenizer.spans import spans_by_characters
from data_pipeline.tokenizer.vocabulary_files import read_json, read_merges, read_vocabulary, read_wordpieces
from data_pipeline.tokenizer_kinds import MERGES_FILE, TOKENIZER_FILE, VOCABULARY_FILE, WORDPIECE_FILE

if TYPE_CHECKING:
    import tokenizers

CACHED_WORDS = 100_000
"""Words whose tokens a BPE model remembers; the library's 10,000 are soon full, which makes it a fifth slower."""
RARE_LETTER = "\ua66e"


class LibraryTokenizer(StoredTokenizer):
    """What the kinds that the `tokenizers` library runs have in common.

    The library reads TOKENIZERS_PARALLELISM at each call. It is set to false for this process, and so for those it
    starts: loader workers are the parallelism, and the library's threads would not survive their fork.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        name: str,
        backend: tokenizers.Tokenizer,
        *,
        byte_level: bool = False,
        continuation: str | None = None,
        options: Mapping[str, bool] | None = None,
    ) -> None:
        """Takes over the `backend`'s settings.

        Args:
            files: contents by the names they are saved under.
            name: what messages call the tokenizer.
            backend: made of those files.
            byte_level: tokens are spelled in `byte_characters`.
            continuation: what tokens that go on with a word begin with, where the vocabulary marks them.
            options: settings that `encode` depends on.

        Raises:
            UserError: some text could not be encoded, or would lose characters without a trace.
        """
        if os.environ.get("TOKENIZERS_PARALLELISM") != "false":
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._use(backend)
        self._continuation = continuation
        self._bytes = {character: byte for byte, character in byte_characters().items()} if byte_level else None
        size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        lacking = self._require_complete(name)
        super().__init__(files, name, size, self._own_roles(), options)
        if lacking:
            fate = "is left out" if self._unknown is None else f"becomes {self._unknown}"
            self.notes = [
                f"{name} has no token for {len(lacking)} of the bytes of UTF-8"
                f" ({' '.join(f'0x{byte:02X}' for byte in lacking)}): one in a text {fate}, as the tokenizers library"
                f" does it"
            ]

    def token_id(self, text: str) -> int | None:
        return self._backend.token_to_id(text)

    def _own_roles(self) -> dict[str, int]:
        return known_roles(self.token_id)

    def _use(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        # Text that looks like a special token is text.
        backend.encode_special_tokens = True
        if hasattr(backend.model, "_resize_cache"):
            backend.model._resize_cache(CACHED_WORDS)
        self._backend = backend
        self._fast = self._fast_encoder()
        self._added = backend.get_added_tokens_decoder()

    def _fast_encoder(self) -> Encode | None:
        """tiktoken's, where that gives what the library gives; the library itself for texts with bytes that are no
        tokens."""
        fast = fast_encoder(self._backend, SPARED_BYTES)
        lacking = [] if fast is None else lacking_bytes(self._backend.get_vocab(with_added_tokens=False))
        if fast is None or not lacking:
            return fast
        lacks_none = without_bytes(lacking)
        return lambda text: fast(text) if lacks_none(text) else self._by_library([text])[0]

    def _require_complete(self, name: str) -> list[int]:
        """Refuse a vocabulary that loses letters, digits, punctuation or white space; returns the bytes that it lacks
        where it is of bytes."""
        fix = "give a tokenizer with an unknown token or with all bytes"
        try:
            lost = not self._encode([RARE_LETTER])[0].size
            self._encode([characters[0] for characters in SPARED_BYTES.values()])
        except Exception as error:  # the library has none of its own
            raise UserError(f"{name} cannot encode every text ({error}); {fix}") from None
        model = self._backend.get_vocab(with_added_tokens=False)
        lacking = lacking_bytes(model) if self._bytes is not None else []
        if self._bytes is not None and self._unknown is None:
            lost = not SPARED_BYTES.keys() >= set(lacking)
        if lost:
            raise UserError(f"{name} drops characters that are not in its vocabulary without a trace; {fix}")
        return lacking

    @property
    def _unknown(self) -> str | None:
        """The model's own unknown token."""
        return getattr(self._backend.model, "unk_token", None)

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        if self._fast is not None:
            return [self._fast(text) for text in texts]
        return self._by_library(texts)

    def _by_library(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _library_spans(self, text: str, ids: np.ndarray) -> np.ndarray | None:
        encoding = self._backend.encode(text, add_special_tokens=False)
        return spans_by_characters(text, encoding.offsets) if encoding.ids == ids.tolist() else None

    def _decode(self, tokens: list[int]) -> str:
        return self._backend.decode(tokens, skip_special_tokens=True)

    def _own_text(self, token: int) -> str:
        return self._backend.id_to_token(token) or ""

    def _special_tokens(self) -> set[int]:
        return super()._special_tokens() | {token for token, added in self._added.items() if added.special}

    def _bytes_of(self, token: int) -> bytes | bool:
        text = self._own_text(token)
        if self._continuation is not None:
            return not text.startswith(self._continuation)
        if token in self._added:
            return self._added[token].special or text.encode()
        if self._bytes is not None and all(character in self._bytes for character in text):
            return bytes(self._bytes[character] for character in text)
        if len(text) == 6 and text.startswith("<0x"):
            return bytes([int(text[1:-1], 16)])
        return text.replace("\u2581", " ").encode()

    def _spell(self, text: str) -> list[int]:
        written = byte_characters()
        units = [written[byte] for byte in text.encode()] if self._bytes is not None else list(text)
        try:
            return [token.id for unit in units for token in self._backend.model.tokenize(unit)]
        except Exception:  # as above: a model without an unknown token
            return []


def _require_prefixed_merges(model: dict[str, Any], name: str) -> None:
    """Refuse a BPE model where the library would cut a prefix off parts that do not have it, at any byte: it may end
    the whole process over that."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not prefix or not isinstance(prefix, str) or not isinstance(merges, list):
        return
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        right = parts[-1] if isinstance(parts, list) and parts else ""
        if not isinstance(right, str) or not right.startswith(prefix):
            raise UserError(
                f"{name}: model.continuing_subword_prefix is {prefix!r}, but the merge {merge!r} joins a part that does"
                f" not begin with it; repair the file"
            )


class HuggingFaceTokenizer(LibraryTokenizer):
    """Any `tokenizer.json` of the `tokenizers` library. Special tokens are those it has as added tokens. Added tokens
    that are not special and have no role, such as runs of spaces, are matched in text as the library does."""

    kind = "huggingface"

    def __init__(self, contents: bytes, name: str = TOKENIZER_FILE) -> None:
        """`contents` of the file; `name` is for messages. Raises UserError if the library cannot use it."""
        import tokenizers

        self._layout = read_json(contents, name, "give a tokenizer.json of the tokenizers library")
        model = self._layout.get("model")
        if not isinstance(model, dict):
            raise UserError(f"{name} has no model, so it is no tokenizer.json of the tokenizers library; give one")
        _require_prefixed_merges(model, name)
        steps = json.dumps([self._layout.get("pre_tokenizer"), self._layout.get("decoder")])
        with _faults_explained(name):
            super().__init__(
                {TOKENIZER_FILE: contents},
                name,
                tokenizers.Tokenizer.from_str(contents.decode()),
                byte_level='"ByteLevel"' in steps,
                continuation=model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None,
            )

    def _own_roles(self) -> dict[str, int]:
        """By name among the added tokens; unk and the ends of a sentence pair as the file's own settings have them."""
        found = known_roles({added.content: token for token, added in self._added.items()}.get)
        processor = self._layout.get("post_processor") or {}
        for role in ("cls", "sep"):  # RoBERTa's and BERT's processors
            if isinstance(pair := processor.get(role), list):
                found[role] = int(pair[1])
        model: dict[str, Any] = self._layout["model"]
        unknown = self.token_id(model["unk_token"]) if model.get("unk_token") else model.get("unk_id")
        return found if unknown is None else {**found, "unk": int(unknown)}

    def assign_roles(self, special: Mapping[str, int], appended: Sequence[str] = ()) -> None:
        import tokenizers

        plain = [token for token in special.values() if token in self._added and not self._added[token].special]
        if plain:
            # Published files have end-of-text tokens that are not marked special, which text would then become.
            for entry in self._layout["added_tokens"]:
                entry["special"] = entry["special"] or entry["id"] in plain
            self._use(tokenizers.Tokenizer.from_str(json.dumps(self._layout)))
        super().assign_roles(special, appended)


class GPT2Tokenizer(LibraryTokenizer):
    """GPT-2's byte-level BPE (Radford et al. 2019), from a vocabulary and its merges."""

    kind = "gpt2"

    def __init__(self, vocabulary: bytes, merges: bytes, name: str = VOCABULARY_FILE) -> None:
        """Contents of `vocab.json` (or `encoder.json`) and of `merges.txt` (or `vocab.bpe`); `name` of the first is for
        messages. Raises UserError if they are not such files or do not fit each other."""
        import tokenizers

        entries = read_vocabulary(vocabulary, name)
        pairs = read_merges(merges, f"the merges of {name}", entries)
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=entries, merges=pairs))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        super().__init__({VOCABULARY_FILE: vocabulary, MERGES_FILE: merges}, name, backend, byte_level=True)


class WordPieceTokenizer(LibraryTokenizer):
    """BERT's WordPiece (Devlin et al. 2019), from a `vocab.txt`; eos is [SEP] and bos is [CLS]. Like BERT it drops
    control characters, treats all white space alike and, with `lower_case`, strips accents too."""

    kind = "wordpiece"

    def __init__(self, vocabulary: bytes, name: str = WORDPIECE_FILE, *, lower_case: bool = True) -> None:
        """Contents of the file; `name` is for messages. Raises UserError if it is not one, or has no [UNK]."""
        import tokenizers

        entries = read_wordpieces(vocabulary, name)
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=entries, unk_token="[UNK]"))
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower_case)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
        files = {WORDPIECE_FILE: vocabulary}
        super().__init__(files, name, backend, continuation="##", options={"lower_case": lower_case})


@contextlib.contextmanager
def _faults_explained(name: str) -> Iterator[None]:
    """What the library finds wrong with a `tokenizer.json`, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # The library has no errors of its own, and its panics are not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} is no tokenizer.json that the library can use ({reason}); give one") from None
