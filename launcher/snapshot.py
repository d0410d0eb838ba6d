"""The code and the config of a submission, kept so that a job that is queued again continues what was started.

`python -m launcher.snapshot [--below=FOLDER] CONFIG [key=value ...]` takes one and prints its folder.
"""

import hashlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from data_pipeline.base.durable import replace_file, temporary_folder
from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, dump_config, load_config
from llmscale.distributed.exit_codes import USER_MISTAKE

VARIABLE = "LLMSCALE_SNAPSHOT"
"""Set in a job that runs from a snapshot, to its folder."""
_PACKAGES = ("llmscale", "data_pipeline", "launcher")
_START = f"""import os, runpy, sys
sys.path[0] = os.environ["{VARIABLE}"] + "/code"
del sys.argv[0]
runpy.run_module(sys.argv[0], None, "__main__", True)
"""
"""Runs a module as `python -m` does, but from the snapshot and not from the working directory, where another llmscale
may lie. PYTHONPATH would not do: a path may have a colon."""


def take_snapshot(config: RunConfig, below: str = "") -> Path:
    """Copy the packages and the resolved config into `snapshots/DIGEST` of the run directory; where a job's number is
    part of that, of the folder that all jobs share. What is there already is taken as it is.

    Args:
        below: the working directory of the job, where that is another one.

    Raises:
        UserError: it cannot be written, or what is there is not what it was.
    """
    text = dump_config(config).encode(errors="backslashreplace")
    files = {f"code/{path.relative_to(root.parent)}": path for root in _roots() for path in _files(root)}
    digest = hashlib.sha256(text)
    for name, path in sorted(files.items()):
        digest.update(f"\0{name}\0".encode(errors="surrogateescape") + path.read_bytes())
    parent = Path(below).absolute() / _shared(config.run.directory) / "snapshots"
    folder = parent / digest.hexdigest()[:16]
    if folder.is_dir():
        _require_unchanged(folder, files, text)
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_folder(parent, ".tmp-")
        try:
            for name, path in files.items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
            replace_file(temporary / "config.yaml", text, durable=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():  # another submission was first
            return folder
        raise UserError(
            f"cannot write {parent} ({error.strerror}), where code and config of the job are kept; make it writable, or"
            " submit with --no-snapshot"
        ) from None
    return folder


def _require_unchanged(folder: Path, files: Mapping[str, Path], config: bytes) -> None:
    """Refuse a snapshot that somebody has edited or a full disk has damaged.

    Raises:
        UserError: names the first file that is not as it was.
    """
    wanted = {"config.yaml": config, **{name: path.read_bytes() for name, path in files.items()}}
    for name, content in wanted.items():
        kept = folder / name
        if not kept.is_file() or kept.read_bytes() != content:
            raise UserError(
                f"{kept} is not as it was when an earlier job was submitted with the same code and config; remove the"
                f" snapshot, unless such a job still waits or runs, and submit again: rm -r {shlex.quote(str(folder))}"
            )


def module_command(module: str) -> list[str]:
    """The command that runs a module of the project: from the snapshot that this process runs from, if it does."""
    start = ["-c", _START] if os.environ.get(VARIABLE) else ["-m"]
    return [sys.executable, *start, module]


def _shared(directory: str) -> Path:
    """The part of a run directory that has no placeholders."""
    parts = Path(directory).parts
    own = next((place for place, part in enumerate(parts) if re.search(r"\{\w*\}", part)), len(parts))
    return Path(*parts[:own])


def _roots() -> list[Path]:
    specs = (find_spec(name) for name in _PACKAGES)
    return [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    below = ""
    if arguments and arguments[0].startswith("--below="):
        below, arguments = arguments[0].removeprefix("--below="), arguments[1:]
    try:
        print(take_snapshot(load_config(arguments[0], tuple(arguments[1:])), below))
    except UserError as error:
        print(f"llmscale: {error}", file=sys.stderr)
        sys.exit(USER_MISTAKE)


if __name__ == "__main__":
    main(sys.argv[1:])
