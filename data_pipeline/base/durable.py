"""Files that are read and written so that neither a kill, a full disk nor what others have put there does harm."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_pipeline.base.errors import writing

_HANDED = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
"""What a shell names its pipes by, as in `llmscale train <(make_config)`: they have a writer, who ends."""
NO_REGULAR_FILE = "it is no regular file but a pipe, a device or a socket"


def read_file(path: str | Path) -> bytes:
    """The contents of a regular file, or of a pipe that the shell has handed over.

    Another pipe would be waited for without end, and /dev/zero read without end.

    Raises:
        OSError: it cannot be opened, or is something else; `strerror` says which.
    """
    try:
        # A pipe without a writer is opened at once then, and a regular file is not concerned.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.ENXIO, NO_REGULAR_FILE, str(path)) from None
        raise
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or (str(path).startswith(_HANDED) and not stat.S_ISDIR(kind)):
        os.set_blocking(descriptor, True)
        with open(descriptor, "rb") as file:
            return file.read()
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.ENXIO, NO_REGULAR_FILE, str(path))


def read_text(path: str | Path) -> str:
    """A regular file as UTF-8 text, whatever ends its lines.

    Raises:
        OSError: as `read_file`.
        UnicodeDecodeError: it is no such text.
    """
    return read_file(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def parse_json(data: bytes | str, unique: bool = False) -> Any:
    """A JSON value.

    Args:
        unique: whether a key that an object has twice is refused; else the last one counts.

    Raises:
        ValueError: it is none, is nested too deep, or has an integer of thousands of digits.
    """
    try:
        return json.loads(data, object_pairs_hook=unique_keys) if unique else json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class RepeatedKey(ValueError):
    """An object has a key twice."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises RepeatedKey, which says which key it has twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RepeatedKey(f"it has {twice!r} twice")
    return found


def temporary_folder(parent: str | Path, prefix: str) -> Path:
    """A new folder with a name of its own and the permissions that the umask leaves, as `mkdtemp`'s has not."""
    while True:
        path = Path(parent) / f"{prefix}{secrets.token_hex(6)}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other process on any machine uses."""
    return path.with_name(f".tmp-{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, so that others see the old one or the new.

    A link at `path` is replaced, not followed. Raises OSError that names the file.

    Args:
        durable: force the content to the disk first.
    """
    temporary = temporary_path(path)
    try:
        with writing(path):
            with open(temporary, "wb", opener=unlinked) as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: Path, data: bytes, durable: bool = False) -> None:
    """Write a file, as `replacing`."""
    with replacing(path, durable) as file:
        file.write(data)


def json_bytes(value: Any, indent: int | None = 2) -> bytes:
    """A value as the JSON of a file that people may read, with a newline at the end.

    Lone surrogates, as file names that are not UTF-8 and people's JSON have them, are escaped.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return (text + "\n").encode(errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file durably; raises OSError that names it."""
    replace_file(path, json_bytes(value), durable=True)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where it is missing or damaged."""
    try:
        return parse_json(read_file(path))
    except (OSError, ValueError):
        return None


def sync_folder(path: Path) -> None:
    """Force the entries of a folder (new files, renames) to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems refuse fsync on a folder and need none.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def unlinked(path: str | Path, flags: int) -> int:
    """An `opener` for `open` that does not follow a link at `path`, so that nothing outside is overwritten.

    Raises:
        OSError: as `os.open`; ELOOP where it is a link, ENXIO where it is a pipe or a device.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ENXIO, NO_REGULAR_FILE, str(path))
        return descriptor
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, NO_REGULAR_FILE, str(path)) from None
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", str(path)) from None
        raise
