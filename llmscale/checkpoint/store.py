"""The folder of checkpoints: names, durable writes, publishing, retention and clean-up.

Checkpoints lie in `step-00000100` folders. What is being written or deleted is named `.tmp-*`, which no reader looks
at. A step that is saved again replaces the older folder, which is named `step-00000100.replaced` for the instant
between the two renames, and which readers accept, so that there is never a moment without a checkpoint.
"""

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.base.durable import replace_file, sync_folder, unlinked
from data_pipeline.base.errors import UserError
from llmscale.checkpoint.manifest import MANIFEST, FileEntry

LATEST = "latest"
_log = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d+)(\.replaced)?")


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `keep`, and each whose step is a multiple of `keep_every` (0: none)."""

    keep: int = 3
    keep_every: int = 0


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:08d}"


def find_checkpoints(directory: str | Path) -> list[Path]:
    """Checkpoint folders, newest first; nothing is said of their health.

    Args:
        directory: a run directory, its `checkpoints` folder, or one checkpoint.

    Raises:
        UserError: there is no such directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"there is no checkpoint or run directory {directory}; give one that exists")
    if (directory / MANIFEST).is_file() or _STEP.fullmatch(directory.name):
        return [directory]
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    matches = [(_STEP.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    found = [(int(match[1]), match[2] is None, path) for match, path in matches if match]
    return [path for _, _, path in sorted(found, reverse=True)]


def write_durably(path: Path, data: bytes) -> FileEntry:
    """Write a file and force it to the disk."""
    with open(path, "wb", opener=unlinked) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def discard(path: Path) -> None:
    """Delete a folder; a kill or an error half-way leaves only a `.tmp-*` folder."""
    doomed = path.with_name(f".tmp-delete-{path.name.removeprefix('.tmp-')}-{time.time_ns()}")
    try:
        path.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def publish(temporary: Path, step: int) -> Path:
    """Make a finished temporary folder the checkpoint of `step`, and `latest` name it.

    One fsync of the parent makes both renames durable; nothing older is deleted before it. `latest` is for people
    and scripts: the readers list the folder, so that failing to replace it is only worth a warning.
    """
    directory = temporary.parent
    final = directory / step_name(step)
    replaced = final.with_name(f"{final.name}.replaced")
    if final.exists():
        discard(replaced)
        final.rename(replaced)
    try:
        temporary.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    try:
        replace_file(directory / LATEST, f"{final.name}\n".encode(), durable=True)
    except OSError as error:
        _log.warning("step %d is saved, but %s could not be replaced: %s", step, directory / LATEST, error)
    sync_folder(directory)
    discard(replaced)
    return final


def apply_retention(
    directory: Path,
    step: int,
    retention: Retention,
    own: Callable[[Path], bool | None],
    best: int | None = None,
) -> None:
    """Delete what `retention` does not keep of the checkpoints up to `step`, the one just written.

    Newer ones are neither counted nor touched: they are there only when a run went back to an older checkpoint.

    Args:
        own: whether a folder is a checkpoint of the run. False: it is something else, which neither counts nor is
            deleted. None: it cannot be read, so that it does not count; it is deleted when others are kept.
        best: step of a checkpoint that stays besides.
    """
    past = [path for path in find_checkpoints(directory) if step_of(path) <= step]
    counted = 0
    for path in past:
        if counted < retention.keep:
            counted += own(path) is True
            continue
        stays = step_of(path) == best or (retention.keep_every and step_of(path) % retention.keep_every == 0)
        if not stays and own(path) is not False:
            discard(path)


def set_aside(path: Path) -> Path:
    """Rename something that stands where a checkpoint belongs, so that nothing of it is lost; gives its new path."""
    number = 1
    while (aside := path.with_name(f"aside-{path.name}-{number}")).exists():
        number += 1
    return path.rename(aside)


def clean(directory: str | Path) -> None:
    """Remove what killed attempts left behind, and put back a checkpoint whose replacement was cut short.

    Call it on one rank, before any rank saves. A missing folder is no error.
    """
    directory = Path(directory)
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if path.name.startswith(".tmp-"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        elif path.name.endswith(".replaced") and _STEP.fullmatch(path.name):
            final = path.with_name(path.name.removesuffix(".replaced"))
            discard(path) if final.exists() else path.rename(final)


def step_of(path: Path) -> int:
    """The step that a folder which `find_checkpoints` gave is named after."""
    match = _STEP.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def free_bytes(path: Path) -> int:
    """Bytes that this user may still write on the file system of `path` or of its nearest existing parent."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def poll(check: Callable[[], bool], timeout: float) -> bool:
    """Wait until `check` holds, asking ever more rarely; False after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return True
