"""What the first bytes of a file tell: that it is only a pointer to the file, a web page, or in another format."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.base.errors import UserError

LOOKED_AT = 1 << 10
"""Bytes that are enough for everything here."""
_LFS = re.compile(rb"version https?://(?:git-lfs\.github\.com|hawser\.github\.com)/spec/")
_ANNEX = re.compile(rb"(?:\.git|\.\.)?/?(?:[^\0\n]{0,200}/)?annex/objects/[^\0\n]+\n?")
_PROLOG = re.compile(rb"<\?xml[^>]*>\s*", re.IGNORECASE)
_PAGE = re.compile(rb"<(?:!doctype\s+html|html|head)[\s>]", re.IGNORECASE)
_STORE_ERROR = re.compile(rb"<Error(?:\s[^>]*)?>\s*<Code>")
_FORMATS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"PK\x03\x04", "a zip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"\x04\x22\x4d\x18", "an lz4 file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1\0\0", "an Arrow file"),
    (b"Obj\x01", "an Avro file"),
    (b"MMIDIDX\0", "a Megatron index"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"%PDF-", "a PDF file"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG\r\n", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)


def pointer(head: bytes) -> str | None:
    """What a file is that only says where its contents are, and what to do; None for all others."""
    # Editors and copying may have put a mark or newlines in front.
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _LFS.match(head):
        return "is a pointer of Git LFS and not the file itself; run `git lfs pull` where it was cloned"
    if len(head) < LOOKED_AT and _ANNEX.fullmatch(head):
        return "is a pointer of git-annex and not the file itself; run `git annex get` where it was cloned"
    return None


def page(head: bytes) -> str | None:
    """What a file is that a server sent instead of the one that was asked for; None for all others."""
    text = _PROLOG.sub(b"", head.removeprefix(b"\xef\xbb\xbf").lstrip(), count=1)
    while text.startswith(b"<!--") and b"-->" in text:
        text = text.partition(b"-->")[2].lstrip()
    if _PAGE.match(text):
        return "is a web page (HTML)"
    return "is an error message of a storage server (XML)" if _STORE_ERROR.match(text) else None


def other_format(head: bytes) -> str | None:
    """Which binary format a file is in, such as "a gzip file"; None for text, and for what is not known here."""
    if head[257:262] == b"ustar":
        return "a tar archive"
    for magic, name in _FORMATS:
        if head.startswith(magic) and not (magic == b"BZh" and not re.match(rb"BZh[1-9]1AY&SY", head)):
            return name
    return None


def require_contents(path: str | Path, head: bytes, where: str = "") -> None:
    """Raise UserError for a file that is a pointer, or a page that was sent instead; `where` leads the message."""
    found = pointer(head)
    if found is not None:
        raise UserError(f"{where}{path} {found}")
    found = page(head)
    if found is not None:
        raise UserError(f"{where}{path} {found}, not the file itself; download it again")


def require_contents_at(path: str | Path) -> None:
    """The same for a local file; one that cannot be read is left to whoever reads it."""
    try:
        if not Path(path).is_file():
            return
        with open(path, "rb") as file:
            head = file.read(LOOKED_AT)
    except OSError:
        return
    require_contents(path, head)
