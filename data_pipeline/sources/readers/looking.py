"""A look at a file's first and last bytes before anything is read of it: whether it is what its source says it is."""

from __future__ import annotations

import zlib

from data_pipeline.base.encodings import (
    MARKS,
    SAMPLE_BYTES,
    UTF8,
    cuts_at_newlines,
    decodes,
    guess,
    mostly_invalid,
    shown_in,
    switching_encoding,
    wide_encoding,
)
from data_pipeline.base.errors import UserError, setting
from data_pipeline.config import SourceConfig
from data_pipeline.kinds import NAMES, source_kind
from data_pipeline.sources.first_bytes import other_format, page, pointer

_KIND_OF_FORMAT = {source_kind(name).format: name for name in NAMES if source_kind(name).format is not None}
_SUFFIXES = {"a gzip file": ".gz", "a Zstandard file": ".zst"}
_SKIPPABLE = bytes(range(0x50, 0x60))
"""First bytes of Zstandard's skippable frames."""
_ZSTD_INPUT = 1 << 12


class Look:
    """Refuses files of one source that are something else than it says."""

    def __init__(self, source: SourceConfig, where: str, pages: bool) -> None:
        """
        Args:
            source: what the files are said to be.
            where: its place in the config, for messages.
            pages: whether web pages are to be read, since a cleaning step takes the text out of them.
        """
        self._source = source
        self._where = where
        self._encoding = source.encoding or UTF8
        self._pages = pages

    def __call__(self, path: str, head: bytes, tail: bytes, size: int) -> None:
        """
        Args:
            path: the file.
            head: its first bytes, 64 KiB or all.
            tail: its last bytes, 64 KiB or what follows `head`.
            size: its bytes.

        Raises:
            UserError: says what the file is, and what to do.
        """
        if not size:
            return
        found = pointer(head)
        if found is not None:
            raise self._error(path, found)
        if not self._source.about.is_text:
            self._require_format(path, head)
            return
        suffix = next((suffix for suffix in _SUFFIXES.values() if path.endswith(suffix)), "")
        if suffix:
            self._require_compressed(path, head, suffix)
            head, tail, size = _decompressed(head, suffix), b"", size if size > len(head) else 0
            if not head:
                return
        self._require_text(path, path.removesuffix(suffix), head, tail, complete=size <= len(head) + len(tail))

    def _error(self, path: str, found: str) -> UserError:
        return UserError(f"{self._where}.paths: {path} {found}")

    def _require_format(self, path: str, head: bytes) -> None:
        own = self._source.about.format
        if own is None:
            return
        found = page(head)
        if found is not None:
            raise self._error(path, f"{found}, not {self._source.kind}; download it again or exclude it")
        found = other_format(head)
        if found not in (None, own):
            kind = _KIND_OF_FORMAT.get(str(found))
            fix = f"use kind: {kind}" if kind else "decompress or convert it, or exclude it"
            raise self._error(path, f"is {found}, not {own}; {fix}")

    def _require_compressed(self, path: str, head: bytes, suffix: str) -> None:
        magic = b"\x1f\x8b" if suffix == ".gz" else b"\x28\xb5\x2f\xfd"
        skippable = suffix == ".zst" and head[:1] in _SKIPPABLE and head[1:4] == b"\x2a\x4d\x18"
        if skippable or head.startswith(magic[: len(head)]):
            return
        is_page, is_format = page(head), other_format(head)
        what = is_page or (f"is {is_format}" if is_format else "holds something else")
        raise self._error(path, f"{what}, though its name ends in {suffix}; rename it, or download it again")

    def _require_text(self, path: str, name: str, head: bytes, tail: bytes, complete: bool) -> None:
        kind, said = self._source.kind, self._source.encoding
        is_plain = self._source.about.is_plain
        # Web pages are text as well; but one that is called a text, or JSON lines, is what a server sent instead.
        if not is_plain or (name.endswith(".txt") and not self._pages and said is None):
            found = page(head)
            if found is not None:
                fix = " (or clean it with the step html, or set its encoding)" if is_plain else ""
                raise self._error(path, f"{found}, not {kind}; download it again or exclude it{fix}")
        found = other_format(head)
        if found is not None:
            raise self._error(path, f"is {found}, not {kind}; {_fix_of(found)}")
        self._require_mark(path, head)
        if said != UTF8:
            self._require_encoding(path, head, tail, complete)

    def _require_mark(self, path: str, head: bytes) -> None:
        wide = self._encoding[:6] if self._encoding[:6] in MARKS.values() else None
        marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
        order = "-le" if head.startswith(b"\xff\xfe") else "-be"
        if marked is not None and not (marked == wide and self._encoding[6:] in ("", order)):
            raise self._error(path, f"is {marked.upper()}, as its byte order mark says; {self._set(marked)}")
        if head.startswith(b"\xef\xbb\xbf") and self._encoding != UTF8:
            raise self._error(path, f"is UTF-8, as its byte order mark says, not {self._encoding}; {self._set(None)}")
        if wide is not None or "\0" in (self._source.delimiter or ""):
            return
        found = wide_encoding(head) or (switching_encoding(head) if self._source.encoding is None else None)
        if found is not None:
            raise self._error(path, f"is probably {found.upper()}; {self._set(found)}")
        if 10 * head.count(0) >= len(head):
            raise self._error(path, "is no text but binary data, a tenth of it zeros; exclude it")

    def _require_encoding(self, path: str, head: bytes, tail: bytes, complete: bool) -> None:
        encoding = self._encoding
        is_wide = encoding[:6] in MARKS.values()
        if encoding != UTF8 and _is_surely_utf8(head, least=0 if is_wide else 8):
            raise self._error(path, f"is UTF-8, not {encoding}; {self._set(None)}")
        if not cuts_at_newlines(encoding):
            text = head.decode(encoding, errors="replace")
            if 10 * text.count("\ufffd") > len(text):
                raise self._error(path, f"is not {encoding}; {self._set('what it is in')}")
            return
        if decodes(head, encoding, complete=complete and not tail) and decodes(tail.lstrip(_LATER), encoding):
            return
        if complete:
            lines = (head + tail).split(b"\n")
        else:
            lines = head.split(b"\n")
            lines = (lines[:-1] or lines) + tail.split(b"\n")[1:]
        if not mostly_invalid(lines, encoding):
            return
        sample = b"\n".join(line for line in lines if not line.isascii())[:SAMPLE_BYTES]
        found = guess(sample)
        if found is None:
            raise self._error(
                path, f"is not {encoding}, and in no other encoding that is known here; convert it or exclude it"
            )
        likely = shown_in(found, sample)
        raise self._error(path, f"is not {encoding} but probably {likely}; {self._set(found.encoding)}")

    def _set(self, encoding: str | None) -> str:
        option = setting(self._where, "encoding")
        if encoding is None:
            # Of a command line, it may be the run's.
            leave_out = f"leave out {option}" if option.startswith(self._where + ".") else f"set {option} to {UTF8}"
            return f"{leave_out}, or name it in a source of its own"
        return f"set {option} to {encoding}, or convert it to UTF-8"


_LATER = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character: what a cut leaves of one."""


def _fix_of(format_: str) -> str:
    if format_ in _KIND_OF_FORMAT:
        return f"use kind: {_KIND_OF_FORMAT[format_]}"
    if format_ in _SUFFIXES:
        return f"let its name end in {_SUFFIXES[format_]}"
    return "convert it or exclude it"


def _is_surely_utf8(data: bytes, least: int) -> bool:
    """Whether bytes are UTF-8 and nothing else: with so many characters besides ASCII, and without zeros."""
    if 0 in data or not decodes(data, UTF8, complete=False):
        return False
    return sum(map("\x7f".__lt__, data.decode(errors="ignore"))) >= least


def _decompressed(head: bytes, suffix: str) -> bytes:
    """What the first bytes of a compressed file begin with; nothing where they are damaged, which reading finds."""
    if suffix == ".gz":
        try:
            return zlib.decompressobj(wbits=31).decompress(head, SAMPLE_BYTES)
        except zlib.error:
            return b""
    import zstandard

    decoder, found, place = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), b"", 0
    try:
        # Little at once, since there is no limit of what comes of it.
        while place < len(head) and len(found) < SAMPLE_BYTES and not decoder.eof:
            found += decoder.decompress(head[place : place + _ZSTD_INPUT])
            place += _ZSTD_INPUT
    except zstandard.ZstdError:
        return b""
    return found[:SAMPLE_BYTES]
