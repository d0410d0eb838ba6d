"""Which files a source names, in an order that every machine agrees on, and fingerprints that show a change."""

from __future__ import annotations

import fnmatch
import glob
import os
import sysconfig
from collections.abc import Callable
from typing import Any, NamedTuple

import xxhash

from data_pipeline.base.errors import UserError, first_line
from data_pipeline.config import SourceConfig

FINGERPRINT_BYTES = 1 << 16
_VERSIONS = ("ETag", "etag", "md5Hash", "content_hash", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call the mark that changes with a file's contents, the surest first."""


class FileEntry(NamedTuple):
    """A file of the corpus, or a shard of a streamed data set."""

    source: int
    """Index of the source in the config."""
    path: str
    """Where this machine finds it: a path, or the URL of a remote file."""
    name: str
    """Path relative to the pattern's fixed part: the same on every machine, so ids and held-out choices use it."""
    size: int
    """Bytes."""
    fingerprint: str
    """16 hexadecimal digits: xxh64 of name, size, and the first and last 64 KiB; of remote files also of the tag or
    time of change that their store tells."""


def is_remote(path: str) -> bool:
    """Whether a path is a URL that fsspec opens."""
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. One instance a process, which fsspec keeps."""
    import fsspec

    return fsspec.core.url_to_fs(url)


Look = Callable[[str, bytes, bytes, int], None]
"""Is shown the path of a file, its first and its last bytes (64 KiB each, none twice) and its size; raises UserError
for one that is not what it should be."""


def list_files(source: SourceConfig, index: int, where: str, look: Look = lambda *shown: None) -> list[FileEntry]:
    """Files that the source's patterns match, by pattern and then by name; a file matched twice counts once.

    Args:
        source: whose `paths` and `exclude` are used.
        index: its number among the sources.
        where: its place in the config, for messages.
        look: is shown every file, since its ends are read anyway.

    Raises:
        UserError: no pattern, one that matches nothing, a file that cannot be read, or what `look` raises.
    """
    if not source.paths:
        raise UserError(f"{where}.paths is empty; give at least one file or pattern")
    entries: list[FileEntry] = []
    seen: set[str] = set()
    for pattern in source.paths:
        expanded = _expand(pattern)
        matches = _remote_matches(expanded, where) if is_remote(expanded) else _local_matches(expanded, pattern, where)
        new = []
        for name, path in _without(source.exclude, matches, pattern, where):
            real = path if is_remote(path) else os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                new.append((name, path))
        if is_remote(expanded):
            entries += _remote_entries(index, new, look)
        else:
            entries += [_entry(index, path, name, look) for name, path in new]
    return entries


def _expand(pattern: str) -> str:
    expanded = pattern.replace("{python_stdlib}", sysconfig.get_path("stdlib"))
    scheme, mark, path = expanded.partition("://")
    return path if mark and scheme in ("file", "local") else expanded


def _local_matches(expanded: str, pattern: str, where: str) -> list[tuple[str, str]]:
    """Sorted (name, path) of one pattern."""
    # A link to nothing is a match too, which is reported when it is opened: a shard left out would change the data.
    if os.path.isfile(expanded) or _leads_nowhere(expanded):
        return [(os.path.basename(expanded), expanded)]
    if os.path.exists(expanded) and not os.path.isdir(expanded):
        raise UserError(f"{where}.paths: {pattern} is no regular file but a pipe, a device or a socket; name a file")
    found = local_paths(expanded)
    paths = [path for path in found if os.path.isfile(path) or _leads_nowhere(path)]
    last = expanded.rstrip("/").rpartition("/")[2]
    folders = [path for path in found if os.path.isdir(path)] if last.strip("*?") else []
    if folders:
        raise UserError(
            f"{where}.paths: {pattern if os.path.isdir(expanded) else folders[0]} is a folder;"
            f" write {pattern.rstrip('/')}/**/* for its files"
        )
    if not paths:
        raise UserError(
            f"{where}.paths: no file matches {pattern} (from folder {os.getcwd()}); correct the path or pattern"
        )
    fixed = _fixed_part(expanded, os.path.lexists)
    return sorted((os.path.relpath(path, fixed).replace(os.sep, "/"), path) for path in paths)


def local_paths(pattern: str) -> list[str]:
    """The files and folders that a pattern matches, in no order. As far as it names what is there, it stands for that,
    whatever characters the names have."""
    return glob.glob(_escaped(pattern, os.path.lexists), recursive=True)


def _literal_parts(pattern: str, exists: Callable[[str], bool]) -> int:
    """How many of a pattern's leading components stand for themselves."""
    parts = pattern.split("/")
    for i, part in enumerate(parts):
        if glob.has_magic(part) and not exists("/".join(parts[: i + 1])):
            return i
    return len(parts)


def _escaped(pattern: str, exists: Callable[[str], bool]) -> str:
    """A pattern of which no character has a special meaning in components that stand for themselves."""
    parts, literal = pattern.split("/"), _literal_parts(pattern, exists)
    return "/".join([*map(glob.escape, parts[:literal]), *parts[literal:]])


def _leads_nowhere(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _remote_matches(url: str, where: str) -> list[tuple[str, str]]:
    """Sorted (name, URL) of one pattern on a remote file system."""
    try:
        system, pattern = file_system(url)
        if _literal_parts(pattern, system.exists) == pattern.count("/") + 1:
            found = {pattern: system.info(pattern)}
        else:
            found = system.glob(_escaped(pattern, system.exists), detail=True)
        fixed = _fixed_part(pattern, system.exists)
    except FileNotFoundError:
        found = {}
    except Exception as error:  # every file system raises its own
        raise UserError(f"{where}.paths: cannot list {url}: {first_line(error)}; correct the URL or access") from None
    files = [path for path, info in found.items() if info["type"] == "file"]
    if not files:
        if any(info["type"] == "directory" for info in found.values()):
            raise UserError(f"{where}.paths: {url} is a folder; write {url.rstrip('/')}/**/* for its files")
        raise UserError(f"{where}.paths: no file matches {url}; correct the URL or pattern")
    return sorted((os.path.relpath(path, fixed), system.unstrip_protocol(path)) for path in files)


def _without(exclude: list[str], named: list[tuple[str, str]], pattern: str, where: str) -> list[tuple[str, str]]:
    kept = [(name, path) for name, path in named if not _excluded(name, exclude)]
    if not kept:
        raise UserError(f"{where}.exclude leaves none of the {len(named)} files that {pattern} matches; relax it")
    return kept


def _fixed_part(pattern: str, exists: Callable[[str], bool]) -> str:
    """The folder above the first component that is a pattern, or above the file."""
    parts = pattern.split("/")
    fixed = min(_literal_parts(pattern, exists), len(parts) - 1)
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")


def _excluded(name: str, exclude: list[str]) -> bool:
    parts = name.split("/")
    return any(part == pattern or fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in exclude)


def _entry(index: int, path: str, name: str, look: Look) -> FileEntry:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            state = xxhash.xxh64(f"{name}\0{size}\0".encode(errors="surrogateescape"))
            head, tail = file.read(FINGERPRINT_BYTES), b""
            if size > FINGERPRINT_BYTES:
                file.seek(max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES))
                tail = file.read()
    except OSError as error:
        target = os.readlink(path) if os.path.islink(path) else ""
        link = f" (it is a link to {target})" if target else ""
        fix = "run `git annex get`, or exclude it" if "annex/objects/" in target else "make it readable or exclude it"
        raise UserError(f"cannot read {path}: {error.strerror}{link}; {fix}") from None
    state.update(head)
    state.update(tail)
    look(path, head, tail, size)
    return FileEntry(index, path, name, size, state.hexdigest())


def _remote_entries(index: int, named: list[tuple[str, str]], look: Look) -> list[FileEntry]:
    """The entries of files of one remote file system; heads and tails are asked for together."""
    if not named:
        return []
    system = file_system(named[0][1])[0]
    paths = [file_system(url)[1] for _, url in named]
    try:
        infos = [system.info(path) for path in paths]
        sizes = [int(info["size"]) for info in infos]
        sized = list(zip(paths, sizes, strict=True))
        heads = _ranges(system, [(path, 0, min(size, FINGERPRINT_BYTES)) for path, size in sized])
        tails = _ranges(
            system,
            [
                (path, max(FINGERPRINT_BYTES, size - FINGERPRINT_BYTES), max(FINGERPRINT_BYTES, size))
                for path, size in sized
            ],
        )
    except Exception as error:  # every file system raises its own
        raise UserError(
            f"cannot read {named[0][1]} or a file beside it: {first_line(error)}; make it readable or exclude it"
        ) from None
    entries = []
    for (name, url), info, size, head, tail in zip(named, infos, sizes, heads, tails, strict=True):
        version = next((info[key] for key in _VERSIONS if info.get(key)), "")
        state = xxhash.xxh64(f"{name}\0{size}\0{version}\0".encode(errors="surrogateescape"))
        state.update(head)
        state.update(tail)
        look(url, head, tail, size)
        entries.append(FileEntry(index, url, name, size, state.hexdigest()))
    return entries


def _ranges(system: Any, parts: list[tuple[str, int, int]]) -> list[bytes]:
    """The bytes of (path, start, stop); empty ranges are not asked for."""
    asked = [part for part in parts if part[1] < part[2]]
    found = iter(system.cat_ranges(*map(list, zip(*asked, strict=True)), on_error="raise") if asked else [])
    return [next(found) if start < stop else b"" for _, start, stop in parts]
