"""What a run takes over from the imported model that it begins from (`train.init_from`), where vocabularies agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.base import META_FILE, StoredTokenizer, Tokenizer
from data_pipeline.tokenizer.conventions import Conventions


def inherited(begins_from: str | None, tokenizer: Tokenizer) -> Conventions | None:
    """The conventions of the imported model that a run begins from; None where it has none, or another vocabulary.

    Args:
        begins_from: a checkpoint, a run, or a run's folder of checkpoints.

    Raises:
        UserError: they are damaged.
    """
    folder, meta = _meta_of(begins_from)
    if meta is None or not _same_vocabulary(folder, meta, tokenizer):
        return None
    try:
        return Conventions.read(meta["conventions"])
    except (KeyError, TypeError):
        raise UserError(f"{folder / META_FILE} is damaged; restore {begins_from}") from None


def inherit(tokenizer: StoredTokenizer, begins_from: str | None, roles: Sequence[str]) -> None:
    """Give a run's new tokenizer the conventions of the model that it begins from; and its roles, where they differ by
    some that this run's objective does not ask for, or by a pad token, for which any token will do."""
    tokenizer.conventions = inherited(begins_from, tokenizer)
    if tokenizer.conventions is None:
        return
    _, meta = _meta_of(begins_from)
    assert meta is not None
    known, appended = meta["special"], meta["appended"]
    own = {role: token for role, token in known.items() if role not in appended}
    mine = {role: token for role, token in tokenizer.special.items() if role not in tokenizer.appended}
    if own == mine and all(role in known or role == "pad" for role in roles):
        tokenizer.assign_roles(own, appended)


def appended_roles(begins_from: str | None) -> tuple[str, ...]:
    """The roles for which the tokenizer of a checkpoint got tokens of its own, so that a run that begins from it gets
    them too, though its objective may need fewer."""
    _, meta = tokenizer_of(begins_from)
    appended = (meta or {}).get("appended")
    return tuple(filter(lambda role: isinstance(role, str), appended)) if isinstance(appended, list) else ()


def _meta_of(begins_from: str | None) -> tuple[Path, dict[str, Any] | None]:
    """The folder of a checkpoint's tokenizer and its meta.json; None where that has no conventions."""
    folder, meta = tokenizer_of(begins_from)
    return folder, meta if meta is not None and "conventions" in meta else None


def tokenizer_of(begins_from: str | None) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the tokenizer of a checkpoint or run, and its meta.json where that is there.

    Raises:
        UserError: it is damaged.
    """
    path = Path(begins_from or "")
    folder = (path.parent if path.name == "checkpoints" else path) / "tokenizer"
    if begins_from is None:
        return folder, None
    try:
        meta = json.loads((folder / META_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return folder, None
    except OSError as error:
        raise UserError(f"cannot read {folder / META_FILE}: {error.strerror}; make it readable") from None
    except (ValueError, RecursionError):
        raise UserError(f"{folder / META_FILE} is damaged; restore {begins_from}") from None
    return folder, meta if isinstance(meta, dict) else None


def _same_vocabulary(folder: Path, meta: dict[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether token ids mean the same in both; roles may differ, but tokens that the model's needed are there."""
    if not isinstance(tokenizer, StoredTokenizer):
        return False
    try:
        same = (meta["kind"], meta["options"]) == (tokenizer.kind, tokenizer.options) and all(
            (folder / name).read_bytes() == contents for name, contents in tokenizer.files.items()
        )
        return same and (not meta["appended"] or not tokenizer.appended or meta["appended"] == [*tokenizer.appended])
    except KeyError:
        raise UserError(f"{folder / META_FILE} is damaged; restore {folder}") from None
    except OSError:
        return False  # that is said where the weights are read
