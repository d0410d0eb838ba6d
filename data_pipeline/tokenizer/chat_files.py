"""A model's chat templates: how Hugging Face directories hold them, and the copy beside a tokenizer's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.base.durable import parse_json, read_text, replace_file
from data_pipeline.base.errors import UserError, writing
from data_pipeline.tokenizer_kinds import TOKENIZER_FILE

TEMPLATE_FILE = "chat_template.jinja"
KEPT_FILE = "chat.json"
"""Beside it in our own copies: templates of other names, and the special tokens that templates see."""
ADDITIONAL_FOLDER = "additional_chat_templates"
SETTINGS_FILE = "tokenizer_config.json"
LEGACY_FILE = "chat_template.json"
"""Of processors: its `chat_template` is the last place to look at."""
DEFAULT = "default"
NAMED_TOKENS = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""What transformers' tokenizers name for templates; others are named by their files (`image_token`)."""
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_ENDS = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_CLASSES: dict[str, dict[str, str]] = {
    "PreTrainedTokenizer": {},
    "TokenizersBackend": {},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": _ENDS,
    "CodeGenTokenizer": _ENDS,
    "GPTNeoXTokenizer": {**_ENDS, "pad_token": "<|padding|>"},
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "T5Tokenizer": _T5,
    "GemmaTokenizer": {
        "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
    },
    "BertTokenizer": {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")},
}  # fmt: skip
"""Special tokens that transformers' classes have where the files name none."""


BUILT_IN = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ 'User: ' + message['content'] + '\\n' }}
{%- elif message['role'] == 'assistant' -%}{{ 'Assistant: ' + message['content'] + eos_token + '\\n' }}
{%- elif message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- else -%}{{ raise_exception('the built-in template knows system, user and assistant') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
"""The template of tokenizers that have none: it needs no token but the one that ends documents."""


@dataclass(frozen=True)
class ChatTemplates:
    """The templates of a model."""

    templates: dict[str, str]
    """By name; `default` is what a dialogue is rendered with."""
    special: dict[str, str | None] | None = None
    """Special tokens by the names that templates know (`bos_token`), None where the files say that there is none; a
    name that is absent follows the tokenizer's roles, as all do where it is None."""
    files: dict[str, str] = field(default_factory=dict)
    """The file that each template came from, for messages."""
    end: str | None = None
    """The special token that ends the assistant's turns, of a model that was trained on dialogues here."""

    def save(self, folder: Path) -> None:
        """Write what `read_chat` reads into an existing folder, each file whole or not at all."""
        others = {name: text for name, text in self.templates.items() if name != DEFAULT}
        kept: dict[str, Any] = {"templates": others}
        if self.special is not None:
            kept["special_tokens"] = self.special
        if self.end is not None:
            kept["end"] = self.end
        with writing(folder):
            replace_file(folder / KEPT_FILE, (json.dumps(kept, indent=1) + "\n").encode())
            if DEFAULT in self.templates:
                replace_file(folder / TEMPLATE_FILE, self.templates[DEFAULT].encode())

    def export(self, folder: Path) -> None:
        """Write them as transformers does: `chat_template.jinja`, and others in a folder of their own."""
        for name, text in self.templates.items():
            path = folder / TEMPLATE_FILE if name == DEFAULT else folder / ADDITIONAL_FOLDER / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def tokens(self, roles: Mapping[str, str]) -> dict[str, str]:
        """The special tokens that templates see, where the tokenizer has these, by role."""
        found: dict[str, str | None] = {name: roles.get(name.removesuffix("_token")) for name in NAMED_TOKENS}
        found |= self.special or {}
        return {name: text for name, text in found.items() if text is not None}


def read_chat(folder: Path) -> ChatTemplates | None:
    """The templates in a Hugging Face directory or a tokenizer's folder, with the precedence of transformers: files
    of their own replace those of `tokenizer_config.json`; None where there are none.

    Raises:
        UserError: a file that cannot be read, or a template that is no text or whose name is no file name.
    """
    found, files = _of_files(folder)
    if not found:
        found, files = _of_settings(folder)
    if not found:
        return None
    for name, text in found.items():
        origin = folder / files[name]
        if not isinstance(text, str):
            raise UserError(f"{origin}: chat template {name!r} is {text!r:.60}, but must be a text; repair it")
        if name in ("", ".", "..") or set(name) & {"/", "\0"} or len(name.encode(errors="replace")) > 200:
            raise UserError(
                f"{origin}: a chat template has the name {name[:60]!r}, which can be no file name; rename it"
            )
        try:
            (name + text).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{origin}: chat template {name!r} is no valid text ({error.reason}); repair it") from None
    end = _read_object(folder / KEPT_FILE).get("end")
    return ChatTemplates(found, _special_of(folder), files, end if isinstance(end, str) else None)


def provide_chat(directory: Path, chosen: str | None, beside: str | None) -> str | None:
    """See to it that a run's tokenizer has a chat template: that which is chosen, or its own, or that of the files it
    was made of, or the built-in one.

    Args:
        directory: the run's tokenizer, which keeps it.
        chosen: `data.tokenizer.chat_template`.
        beside: a file in the folder that the tokenizer is from.

    Returns:
        What it has got now, for people; None where it had one.

    Raises:
        UserError: a template cannot be read, or the run has another one than that which is chosen.
    """
    own = read_chat(directory) or ChatTemplates({})
    if chosen is not None:
        wanted = read_template(Path(chosen))
        if own.templates.get(DEFAULT) == wanted:
            return None
        replace(own, templates={**own.templates, DEFAULT: wanted}).save(directory)
        return f"using the chat template in {chosen}"
    if DEFAULT in own.templates:
        return None
    found = read_chat(Path(beside).parent) if beside else None
    if found is not None and DEFAULT in found.templates:
        found.save(directory)
        return f"using the chat template in {found.files[DEFAULT]} beside {beside}"
    replace(own, templates={**own.templates, DEFAULT: BUILT_IN}).save(directory)
    return "using a simple chat template (User: ..., Assistant: ...), since the tokenizer has none"


def carry_chat(folder: Path, destination: Path) -> None:
    """Give a tokenizer's folder the chat templates of another, unless it has its own.

    Raises:
        UserError: as `read_chat`.
    """
    if read_chat(destination) is None and (found := read_chat(folder)) is not None:
        found.save(destination)


def _of_files(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Templates by name and their files, of those that have a file of their own."""
    found: dict[str, Any] = {}
    files: dict[str, str] = {}
    kept = _read_object(folder / KEPT_FILE).get("templates", {})
    if isinstance(kept, dict):
        found.update(kept)
        files.update(dict.fromkeys(kept, KEPT_FILE))
    paths = {path.name.removesuffix(".jinja"): path for path in sorted((folder / ADDITIONAL_FOLDER).glob("*.jinja"))}
    for name, path in {DEFAULT: folder / TEMPLATE_FILE, **paths}.items():
        if path.is_file():
            found[name] = read_template(path)
            files[name] = str(path.relative_to(folder))
    return found, files


def _of_settings(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Templates by name and their file: a text, a list of named ones, or a table."""
    for file in (SETTINGS_FILE, LEGACY_FILE):
        given = _read_object(folder / file).get("chat_template")
        if given is None:
            continue
        if isinstance(given, list):
            try:
                given = {entry["name"]: entry["template"] for entry in given}
            except (TypeError, KeyError):
                raise UserError(
                    f"{folder / file}: chat_template is a list of other things than objects with name and template;"
                    f" repair it"
                ) from None
        found = given if isinstance(given, dict) else {DEFAULT: given}
        if wrong := next((name for name in found if not isinstance(name, str)), None):
            raise UserError(f"{folder / file}: a chat template has the name {wrong!r:.60}, which is no text; repair it")
        return found, dict.fromkeys(found, file)
    return {}, {}


def _special_of(folder: Path) -> dict[str, str | None] | None:
    """The special tokens that templates see, as transformers finds them."""
    kept = _read_object(folder / KEPT_FILE).get("special_tokens")
    if isinstance(kept, dict):
        return {name: text for name, text in kept.items() if isinstance(name, str) and isinstance(text, str | None)}
    if (folder / KEPT_FILE).is_file():
        return None
    given = _read_object(folder / SETTINGS_FILE)
    if not given:
        return None
    name = str(given.get("tokenizer_class") or "").removesuffix("Fast")
    if name == "LlamaTokenizer" and _has_byte_level(folder / TOKENIZER_FILE):
        name = "TokenizersBackend"  # Llama 3's kind, to which transformers does not apply Llama 2's class
    # A class that is not in the table may have defaults, so that nothing is known of what the files do not name.
    found: dict[str, str | None] = dict.fromkeys(NAMED_TOKENS) if name in _CLASSES else {}
    found.update(_CLASSES.get(name, {}))
    if "added_tokens_decoder" not in given:
        given = {**given, **_read_object(folder / _SPECIAL_TOKENS_FILE)}
    extra = given.get("extra_special_tokens")
    named = {**given, **(extra if isinstance(extra, dict) else {})}
    for key, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
        elif key in NAMED_TOKENS and value is None:
            found[key] = None
    return found


def _has_byte_level(path: Path) -> bool:
    return path.is_file() and '"ByteLevel"' in path.read_text(encoding="utf-8", errors="replace")


def read_template(path: Path) -> str:
    """A template's file, or any other text.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{path} cannot be read ({reason}); repair it or remove it") from None


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = parse_json(read_template(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); repair it or remove it") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a JSON {type(found).__name__} where an object is needed; repair it or remove it")
    return found
