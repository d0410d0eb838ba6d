"""Tokenizers on disk: what the config names, and the copy that a run keeps."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.durable import parse_json, read_file, temporary_folder
from data_pipeline.base.errors import FULL, UserError, writing
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.sources.first_bytes import LOOKED_AT, require_contents
from data_pipeline.tokenizer.base import META_FILE, RULES, StoredTokenizer, Tokenizer
from data_pipeline.tokenizer.bytes_tokenizer import BytesTokenizer
from data_pipeline.tokenizer.chat_files import read_chat
from data_pipeline.tokenizer.conventions import Conventions
from data_pipeline.tokenizer.hugging_face import GPT2Tokenizer, HuggingFaceTokenizer, WordPieceTokenizer
from data_pipeline.tokenizer.inherited import inherit
from data_pipeline.tokenizer.recognition import what_it_is
from data_pipeline.tokenizer.roles import appending_order
from data_pipeline.tokenizer.sentence_piece import SentencePieceTokenizer
from data_pipeline.tokenizer.training import train_sentencepiece
from data_pipeline.tokenizer_kinds import TOKENIZER_KINDS

_CLASSES: dict[str, Callable[..., StoredTokenizer]] = {
    each.kind: each
    for each in (SentencePieceTokenizer, HuggingFaceTokenizer, GPT2Tokenizer, WordPieceTokenizer, BytesTokenizer)
}
MERGES_NAMES = ("merges.txt", "vocab.bpe")
SETTINGS_BESIDE = "tokenizer_config.json"
"""The file in which Hugging Face directories name the special tokens."""


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer that `prepare_tokenizer` or `save` wrote.

    Raises:
        UserError: no tokenizer there, or its contents are not those that were written.
    """
    meta = _read_meta(directory)
    if meta is None:
        raise UserError(f"{directory} holds no tokenizer (no {META_FILE}); give a run directory's tokenizer folder")
    return _load(Path(directory), meta)


def open_tokenizer(settings: TokenizerConfig) -> StoredTokenizer:
    """The tokenizer of the files that a config names, with the roles that it has by itself; kind bytes has no file.

    Raises:
        UserError: the files cannot be read, or are none of that kind.
    """
    given = _read_given(settings)
    assert given is not None, "a tokenizer that is to be trained has no files yet"
    return _open_given(settings, given)


def prepare_tokenizer(
    config: DataConfig,
    directory: str | Path,
    progress: Callable[[str], None] | None = None,
    roles: Sequence[str] = (),
    begins_from: str | None = None,
) -> Tokenizer:
    """The run's tokenizer: loaded where `directory` holds a finished one, else copied or trained, and kept there.

    The directory appears in one piece or not at all, so a killed run leaves no half tokenizer, and of several
    processes that prepare it at once all load the same.

    Args:
        progress: is told what takes time.
        roles: roles that the tokenizer must have. Those it lacks get a token each at the end of the vocabulary,
            sentinels in descending order, so that sentinel_0 has the highest id.
        begins_from: the checkpoint or run whose weights the run begins from. Where that is an imported model with this
            tokenizer, a new `directory` keeps the model's roles and conventions.

    Raises:
        UserError: the directory's tokenizer is not the config's, `path` cannot be used, a token of `special` does not
            exist, no token ends documents, or training is impossible.
    """
    directory = Path(directory)
    settings = config.tokenizer
    kept = _read_meta(directory) is not None
    # A run has its own copy, and needs the file no more.
    given = None if kept and settings.path and not os.path.lexists(settings.path) else _read_given(settings)
    if not kept:
        if given is not None:
            made = _open_given(settings, given)
        else:
            if progress is not None:
                progress(f"training a {settings.train.model} tokenizer of {settings.train.vocab_size} tokens")
            made = SentencePieceTokenizer(train_sentencepiece(config, progress), "the trained tokenizer")
            made.trained = settings.train.model_dump()
        _give_roles(made, settings, roles)
        for note in made.notes if progress is not None else ():
            progress(f"note: {note}")  # type: ignore[misc]
        inherit(made, begins_from, roles)
        _publish(made, directory)
    meta = _read_meta(directory)
    assert meta is not None
    loaded = _load(directory, meta)
    _check(loaded, settings, given, roles, directory)
    return loaded


def interchangeable(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether two tokenizers have the same vocabulary and no role with different tokens; one may lack roles that the
    other has."""
    if first.digest == second.digest:
        return True
    assert isinstance(first, StoredTokenizer)
    assert isinstance(second, StoredTokenizer)
    parts = [(t.kind, t.options, t.appended, t.files) for t in (first, second)]
    return parts[0] == parts[1] and all(
        second.special.get(role, token) == token for role, token in first.special.items()
    )


def _open_given(settings: TokenizerConfig, given: Mapping[str, bytes]) -> StoredTokenizer:
    """Raises UserError that says what the file is, where it is something else."""
    try:
        return _open(settings.kind, given, settings.path or settings.kind, settings.model_dump())
    except UserError:
        path = Path(settings.path or "")
        found = what_it_is(next(iter(given.values())), path)
        if found is None or f"set data.tokenizer.kind to {settings.kind}" in found:
            raise
        raise UserError(f"{path} {found}") from None


def _open(kind: str, files: Mapping[str, bytes], name: str, settings: Mapping[str, Any]) -> StoredTokenizer:
    """A tokenizer of the contents of its files, called `name`; `settings` has the options of its kind."""
    about = TOKENIZER_KINDS[kind]
    options = {option: settings.get(option, False) for option in about.options}
    return _CLASSES[kind](*(files[each] for each in about.files), *([name] if files else []), **options)


def _load(directory: Path, meta: dict[str, Any]) -> StoredTokenizer:
    try:
        kind, written = meta["kind"], meta["digest"]
        files = {name: _read(directory / name, f"restore {directory}") for name in TOKENIZER_KINDS[kind].files}
        name = str(directory / next(iter(files), ""))
        tokenizer = _open(kind, files, name, meta["options"])
        appended = meta["appended"]
        own = {role: token for role, token in meta["special"].items() if role not in appended}
        tokenizer.assign_roles(own, appended)
        tokenizer.trained = meta["trained"]
        tokenizer.rules = meta.get("rules", 1)
        tokenizer.conventions = Conventions.read(meta.get("conventions"))
        tokenizer.chat = read_chat(directory)
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{directory / META_FILE} is damaged; restore {directory}") from None
    if tokenizer.rules not in range(1, RULES + 1):
        raise UserError(
            f"{directory / META_FILE} has rules {tokenizer.rules!r}, but this llmscale knows those up to {RULES};"
            f" take the newer one that wrote it"
        )
    if tokenizer.digest != written:
        raise UserError(f"{name} has digest {tokenizer.digest[:12]} but was written as {written[:12]}; restore it")
    return tokenizer


def _give_roles(tokenizer: StoredTokenizer, settings: TokenizerConfig, roles: Sequence[str]) -> None:
    special = _roles_of_copy(tokenizer, settings)
    for role, text in _named_beside(settings).items():
        token = tokenizer.token_id(text)
        if token is not None:
            special[role] = token
    for role, text in settings.special.items():
        token = tokenizer.token_id(text)
        if token is None:
            raise UserError(
                f"data.tokenizer.special.{role}: {tokenizer.name} has no token {text!r} among its"
                f" {tokenizer.vocab_size}; name one that it has"
            )
        special[role] = token
    if _shares_unknown(special):
        del special["unk"]
    if "eos" not in special and "eos" not in roles:
        raise UserError(
            f"{tokenizer.name} has no token known to end a text, which separates documents; name one in"
            " data.tokenizer.special.eos"
        )
    tokenizer.assign_roles(special, appending_order([role for role in roles if role not in special]))


def _roles_of_copy(tokenizer: StoredTokenizer, settings: TokenizerConfig) -> dict[str, int]:
    """The tokenizer's own roles; where its file lies in a copy that a run, `prepare` or `import` kept, those that the
    copy has, so that it stays the same tokenizer when more names of roles become known."""
    own = dict(tokenizer.special)
    try:
        meta = parse_json(_read(Path(settings.path or "").with_name(META_FILE), "restore it"))
        kept = {role: token for role, token in meta["special"].items() if role not in meta["appended"]}
        tokenizer.assign_roles(kept, meta["appended"])
        return kept if tokenizer.digest == meta["digest"] else own
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return own  # somebody else's file of that name, or none


def _shares_unknown(special: Mapping[str, object]) -> bool:
    """Whether the unknown token has another role too, as GPT-2's, which never stands for anything unknown."""
    return "unk" in special and special["unk"] in [token for role, token in special.items() if role != "unk"]


def _named_beside(settings: TokenizerConfig) -> dict[str, str]:
    """Special tokens by role, as a Hugging Face directory's settings name them."""
    path = Path(settings.path).with_name(SETTINGS_BESIDE) if settings.path else None
    if path is None or not path.is_file():
        return {}
    try:
        found = parse_json(_read(path, "repair it or remove it"))
        named = {role: found.get(f"{role}_token") for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    except (ValueError, AttributeError):
        raise UserError(f"{path} is not a JSON object; repair it or remove it") from None
    texts = {role: value.get("content") if isinstance(value, dict) else value for role, value in named.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _check(
    tokenizer: StoredTokenizer,
    settings: TokenizerConfig,
    given: Mapping[str, bytes] | None,
    roles: Sequence[str],
    directory: Path,
) -> None:
    """Raise UserError unless `directory` holds the tokenizer that the config asks for."""
    fix = "start a new run, or set it back"
    if tokenizer.kind != settings.kind:
        raise UserError(
            f"{directory} holds a {tokenizer.kind} tokenizer, but data.tokenizer.kind is {settings.kind}; {fix}"
        )
    for name, contents in (given or {}).items():
        new, old = (hashlib.sha256(data).hexdigest()[:12] for data in (contents, tokenizer.files[name]))
        if new != old:
            raise UserError(
                f"data.tokenizer.path: {name} of {settings.path} ({new}) is not that of {directory} ({old}); {fix}"
            )
    wanted: dict[str, Any] = {f"train.{key}": value for key, value in settings.train.model_dump().items()}
    had: dict[str, Any] = {f"train.{key}": value for key, value in (tokenizer.trained or {}).items()}
    if given is not None or not had:
        wanted, had = {}, {}
    for option in settings.about.options:
        wanted[option], had[option] = getattr(settings, option), tokenizer.options[option]
    texts = {role: tokenizer.token_text(token) for role, token in tokenizer.special.items()}
    shared = "unk" not in texts and _shares_unknown({**texts, **settings.special})
    for role, text in settings.special.items():
        if role == "unk" and shared:
            continue
        wanted[f"special.{role}"] = text
        had[f"special.{role}"] = texts.get(role)
    for key, value in wanted.items():
        if had.get(key) != value:
            raise UserError(
                f"data.tokenizer.{key} is {value!r}, but the tokenizer in {directory} has {had.get(key)!r}; {fix}"
            )
    # An imported model may have no pad token, for which its end token stands then.
    free = {"pad"} if tokenizer.conventions is not None else set()
    lacking = [role for role in roles if role not in tokenizer.special and role not in free]
    if lacking:
        raise UserError(
            f"the tokenizer in {directory} has no token for {lacking[0]}, which this objective needs; start a new run"
        )


def _read_given(settings: TokenizerConfig) -> dict[str, bytes] | None:
    """The files that the config names, by the names of a saved copy; None where one is to be trained."""
    if not settings.about.files:
        return {}
    if settings.path is None:
        return None
    path = Path(settings.path)
    first, *others = settings.about.files
    if path.is_dir():
        raise UserError(f"data.tokenizer.path: {path} is a folder; name the file in it, such as {path / first}")
    found = {first: _read(path, "name a readable file", "data.tokenizer.path: ")}
    for name in others:
        merges = settings.merges or next((str(p) for n in MERGES_NAMES if (p := path.with_name(n)).is_file()), None)
        if merges is None:
            raise UserError(
                f"data.tokenizer.merges: there is no {' or '.join(MERGES_NAMES)} beside {path}; name the file"
            )
        found[name] = _read(Path(merges), "name a readable file", "data.tokenizer.merges: ")
    return found


def _read(path: Path, fix: str, where: str = "") -> bytes:
    try:
        contents = read_file(path)
    except OSError as error:
        raise UserError(f"{where}cannot read {path}: {error.strerror}; {fix}") from None
    require_contents(path, contents[:LOOKED_AT], where)
    return contents


def _publish(tokenizer: StoredTokenizer, directory: Path) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_folder(directory.parent, f".{directory.name}-")
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(f"cannot make {directory}: {error.strerror}; name a folder that you may write") from None
    try:
        with writing(directory):
            tokenizer.save(temporary)
            os.rename(temporary, directory)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if _read_meta(directory) is not None:
            return  # another process was faster
        if directory.exists():
            raise UserError(f"{directory} exists and is no tokenizer; name a new folder, or remove it") from None
        raise


def _read_meta(directory: str | Path) -> dict[str, Any] | None:
    path = Path(directory) / META_FILE
    try:
        meta = parse_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable") from None
    except ValueError:
        raise UserError(f"{path} is damaged; restore {directory}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path} is damaged; restore {directory}")
    return meta
