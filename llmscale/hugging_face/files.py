"""Files of a Hugging Face directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.base.durable import parse_json, read_file, temporary_folder
from data_pipeline.base.errors import UserError
from data_pipeline.sources.first_bytes import require_contents_at

CONFIG = "config.json"
GENERATION = "generation_config.json"


def read_json(path: Path, fix: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        found = parse_json(read_file(path))
    except FileNotFoundError:
        raise UserError(f"there is no {path}; {fix}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {fix}") from None
    except (ValueError, RecursionError) as error:
        require_contents_at(path)
        raise UserError(f"{path} is not JSON ({error}); {fix}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a JSON {type(found).__name__} where an object is needed; {fix}")
    return found


def require_free(path: Path) -> None:
    """Refuse a place that is taken.

    Raises:
        UserError: it exists.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already; name a new folder, or remove it first")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears as `path` when all is in it, or not at all.

    Raises:
        UserError: `path` exists, or its parent cannot be written to.
    """
    require_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_folder(path.parent, f".tmp-{path.name}-")
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; name a folder that you may write") from None
    try:
        yield temporary
        require_free(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
