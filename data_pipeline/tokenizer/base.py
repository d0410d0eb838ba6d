"""What the pipeline asks of a tokenizer, and what all kinds of them share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipeline.base.durable import json_bytes
from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.chat_files import ChatTemplates
from data_pipeline.tokenizer.conventions import Conventions
from data_pipeline.tokenizer.roles import role_text
from data_pipeline.tokenizer.spans import spans_by_bytes
from data_pipeline.tokenizer.words import Words

META_FILE = "meta.json"
"""Beside a tokenizer's own files: its kind, roles, rules and digest."""
RULES = 2
"""Rules of new tokenizers. A saved one keeps those it was made with, so that runs that exist see the same samples.
1: words begin as `words.begins_word` says, and a SentencePiece model that puts a space before a text puts one behind
each U+2581 too. 2: words begin as `words.edges_of` says, and U+2581 is a character like any other."""


class Tokenizer(Protocol):
    """What the pipeline and generation need of a tokenizer.

    Text stays text: where a document spells out a special token, such as `</s>` or `<|endoftext|>`, `encode` gives
    the tokens of those characters and never the special token, so that no document can end itself or pose as another.
    """

    kind: str
    """`data.tokenizer.kind`."""
    vocab_size: int
    """Number of token ids, appended ones included."""
    special: dict[str, int]
    """Token ids by role, where they exist: bos eos pad unk cls sep mask fim_prefix fim_middle fim_suffix sentinel_0
    sentinel_1 ... Two roles may share a token. eos always exists."""
    digest: str
    """SHA-256 of all that decides what `encode` gives and which roles there are."""
    chat: ChatTemplates | None
    """Its chat templates; None where it has none."""

    def begin_words(self, ids: np.ndarray) -> np.ndarray:
        """(T,) bool: which of (T,) token ids that follow each other begin a word; see `words.edges_of`. The first may
        go on with a word that is not there."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens (but unk, where the vocabulary cannot express the text)."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of several texts as int32 arrays: what `encode` gives for each, faster. Uses one thread."""
        ...

    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """`encode`, and the bytes that each token stands for.

        Returns:
            (T,) int32 token ids, and (T, 2) int64 spans [start, end) in the UTF-8 bytes of the text. Spans may overlap
            where several tokens are parts of one character.

        Raises:
            UserError: the tokenizer changes the text in a way that nobody can follow.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens give no text.

        Raises:
            ValueError: an id is negative or not below `vocab_size`.
        """
        ...

    def token_text(self, token: int) -> str:
        """The vocabulary's own spelling of a token, such as `▁the`, `Ġthe`, `##ing` or `<0x0A>`; "" for a gap."""
        ...

    def spellings(self) -> dict[str, int]:
        """Special tokens, with a role or without, by how they are spelled, as chat templates spell them out."""
        ...

    def save(self, directory: str | Path) -> None:
        """Write what `load_tokenizer` reads into an existing folder."""
        ...


class StoredTokenizer(ABC):
    """Roles, appended tokens, decoding without special tokens and the saved copy; kinds add their library's calls."""

    kind: str
    vocab_size: int
    special: dict[str, int]
    digest: str

    def __init__(
        self,
        files: Mapping[str, bytes],
        name: str,
        size: int,
        special: Mapping[str, int],
        options: Mapping[str, bool] | None = None,
    ) -> None:
        """What a kind knows of its tokenizer.

        Args:
            files: contents by the names they are saved under.
            name: what messages call the tokenizer.
            size: token ids of the files' own vocabulary.
            special: the roles that it has by itself.
            options: settings that `encode` depends on.
        """
        self.name = name
        self.files = dict(files)
        self.options = dict(options or {})
        self.trained: dict[str, object] | None = None
        """The `data.tokenizer.train` settings it was trained with, if it was."""
        self.rules = RULES
        """The version of its rules."""
        self.notes: list[str] = []
        """Sentences for those who take the tokenizer: what it cannot do."""
        self.chat: ChatTemplates | None = None
        """Its chat templates; None where it has none."""
        self.conventions: Conventions | None = None
        """Those of the model that it was imported with; None: this project's own."""
        self._own_size = size
        self._own_unknown = special.get("unk")
        self.assign_roles(special)

    def assign_roles(self, special: Mapping[str, int], appended: Sequence[str] = ()) -> None:
        """Set which tokens have roles.

        Args:
            special: token ids by role.
            appended: roles that get a token at the end of the vocabulary, by increasing id.

        Raises:
            UserError: a special token cannot be told from text.
        """
        self.appended = tuple(appended)
        self.special = {**special, **{role: self._own_size + i for i, role in enumerate(self.appended)}}
        self.vocab_size = self._own_size + len(self.appended)
        self._silent = set(self.special.values())
        self.__dict__.pop("_words", None)
        self._spelled = self._find_spelled()
        self._watched = np.zeros(self.vocab_size, dtype=bool)
        self._watched[list(self._spelled)] = True
        self.digest = self._digest()

    def begin_words(self, ids: np.ndarray) -> np.ndarray:
        """As in `Tokenizer`."""
        return self._words.begin(ids)

    @cached_property
    def _words(self) -> Words:
        texts = [self._bytes_of(token) if token not in self._silent else True for token in range(self._own_size)]
        return Words([*texts, *[True] * len(self.appended)], alone=self.rules == 1)

    def encode(self, text: str) -> list[int]:
        """As in `Tokenizer`."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As in `Tokenizer`."""
        encoded = self._encode(list(texts))
        return [self._respelled(ids) for ids in encoded] if self._spelled else encoded

    def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """As in `Tokenizer`."""
        (ids,) = self.encode_batch([text])
        spans = spans_by_bytes(text, (self._bytes_of(int(token)) for token in ids))
        if spans is None:
            spans = self._library_spans(text, ids)
        if spans is None:
            raise UserError(
                f"{self.name} does not say which bytes of {text[:40]!r} its tokens stand for; leave characters out of"
                f" the text that it spells otherwise"
            )
        return ids, spans

    def _library_spans(self, text: str, ids: np.ndarray) -> np.ndarray | None:
        """(T, 2) spans in bytes as the tokenizer's library tells them; None where it cannot."""
        return None

    def decode(self, ids: Iterable[int]) -> str:
        """As in `Tokenizer`."""
        tokens = [int(token) for token in ids]
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is not in the vocabulary of {self.vocab_size} tokens ({self.name})")
        return self._decode([token for token in tokens if token not in self._silent])

    def token_text(self, token: int) -> str:
        """As in `Tokenizer`."""
        return role_text(self.appended[token - self._own_size]) if token >= self._own_size else self._own_text(token)

    def spellings(self) -> dict[str, int]:
        """As in `Tokenizer`."""
        tokens = sorted(self._special_tokens() | self._silent)
        return {text: token for token in tokens if (text := self.token_text(token))}

    @abstractmethod
    def token_id(self, text: str) -> int | None:
        """The token that the vocabulary spells `text`."""

    def save(self, directory: str | Path) -> None:
        """As in `Tokenizer`."""
        for name, contents in self.files.items():
            (Path(directory) / name).write_bytes(contents)
        meta = {
            "kind": self.kind,
            "vocab_size": self.vocab_size,
            "special": self.special,
            "appended": self.appended,
            "options": self.options,
            "trained": self.trained,
            "rules": self.rules,
            "digest": self.digest,
        }
        if self.conventions is not None:
            meta["conventions"] = self.conventions.as_json()
        (Path(directory) / META_FILE).write_bytes(json_bytes(meta))

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[np.ndarray]: ...

    @abstractmethod
    def _decode(self, tokens: list[int]) -> str:
        """The text of tokens of the own vocabulary that have no role."""

    @abstractmethod
    def _own_text(self, token: int) -> str: ...

    @abstractmethod
    def _bytes_of(self, token: int) -> bytes | bool:
        """The UTF-8 bytes that a token stands for; where it is no text, or the vocabulary marks the beginnings of
        words, whether it begins one."""

    @abstractmethod
    def _spell(self, text: str) -> list[int]:
        """Tokens of a text character by character, with nothing put in front of it."""

    def _special_tokens(self) -> set[int]:
        """Tokens of the own vocabulary that no text may become."""
        return {token for token in self._silent if token < self._own_size}

    def _find_spelled(self) -> dict[int, np.ndarray]:
        """Special tokens that the library would make from text, and the tokens that such text becomes instead.

        Most libraries never do. But a Unigram model from a `tokenizer.json` matches `</s>` like any other piece, and
        SentencePiece does so with user-defined symbols.
        """
        roles = {token: role for role, token in self.special.items()}
        unknown = {self.special.get("unk")}
        if self._own_unknown not in (self.special.get("bos"), self.special.get("eos")):
            unknown.add(self._own_unknown)  # named as the pad token too, for example
        watched = sorted(self._special_tokens() - unknown)
        texts = {token: self._own_text(token) for token in watched}
        found: dict[int, np.ndarray] = {}
        for token, text in texts.items():
            if not text or not any(token in ids for ids in self._encode([text, f"a{text}b", f"a {text} b"])):
                continue
            spelled = self._spell(text)
            if spelled and not set(spelled) & set(texts):
                found[token] = np.array(spelled, dtype=np.int32)
            elif token in roles:
                raise UserError(
                    f"{self.name}: the {roles[token]} token {text!r} is also what ordinary text becomes; name another"
                    f" in data.tokenizer.special"
                )
        return found

    def _respelled(self, ids: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(self._watched[ids])
        if not places.size:
            return ids
        first, *rest = np.split(ids, places)
        return np.concatenate([first, *(part for run in rest for part in (self._spelled[int(run[0])], run[1:]))])

    def _digest(self) -> str:
        decisive = [self.kind, sorted(self.options.items()), sorted(self.special.items()), self.appended]
        state = hashlib.sha256(json.dumps(decisive).encode())
        for name, contents in sorted(self.files.items()):
            state.update(name.encode() + hashlib.sha256(contents).digest())
        return state.hexdigest()
