"""Dialogues as the model was trained to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from data_pipeline.disk import parse_json, read_file, read_text
from data_pipeline.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from llmscale.config import ModelConfig
from llmscale.generate.prompts import Context, Reading, start_token

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
"""Where Hugging Face tokenizers keep their template: a file of its own, or a field `chat_template`."""
_MARK = "\ue000"
"""Breaks up special tokens that a message spells out, so that nobody's text can pose as the template's."""


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant"]
    text: str


class Template(Protocol):
    """How a dialogue becomes what the model reads before its next turn."""

    stop: tuple[str, ...]
    """Texts that end the model's turn, besides the end-of-document token."""

    def context(self, messages: Sequence[Message]) -> Context:
        """What the model reads before it answers the last message."""
        ...


class DefaultTemplate:
    """The form of this project's own training data.

    A decoder trained on pairs of texts (objective seq2seq with concatenate) reads every turn followed by the
    end-of-document token, an encoder_decoder the turns as lines of its source. Other decoders continue a document of
    turns, each a line that begins with `User: ` or `Assistant: `. A system message stands before the first turn.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, reading: Reading) -> None:
        self._tokenizer = tokenizer
        self._two = config.architecture == "encoder_decoder"
        self._reading = reading
        self.stop: tuple[str, ...] = () if self._two or reading == "source" else ("\nUser:",)

    def context(self, messages: Sequence[Message]) -> Context:
        """As in `Template`."""
        tokenizer, end = self._tokenizer, self._tokenizer.special["eos"]
        system = "".join(message.text + "\n\n" for message in messages if message.role == "system")
        turns = [message for message in messages if message.role != "system"]
        texts = [turn.text for turn in turns]
        texts[0] = system + texts[0]
        if self._two:
            return Context([start_token(tokenizer)], [*tokenizer.encode("\n".join(texts)), end])
        if self._reading == "source":
            return Context([token for ids in tokenizer.encode_batch(texts) for token in (*ids.tolist(), end)])
        lines = [f"{turn.role.capitalize()}: {turn.text}\n" for turn in turns]
        document = tokenizer.encode(system + "".join(lines) + "Assistant:")
        return Context([end, *document], prefix=self._reading == "prefix")


class JinjaTemplate:
    """A Hugging Face chat template."""

    stop: tuple[str, ...] = ()

    def __init__(self, source: str, tokenizer: Tokenizer, origin: Path) -> None:
        """Raises UserError for a template that is no valid jinja."""
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._tokenizer = tokenizer
        self._origin = origin
        self._spellings = tokenizer.spellings()
        longest_first = sorted(map(re.escape, self._spellings), key=len, reverse=True)
        self._special = re.compile("|".join(longest_first))
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template in {origin} is no valid jinja ({error}); repair it") from None

    def context(self, messages: Sequence[Message]) -> Context:
        """As in `Template`.

        Raises:
            UserError: the template refuses the dialogue.
        """
        import jinja2

        roles = self._tokenizer.special
        variables = {
            f"{role}_token": self._tokenizer.token_text(roles[role]) for role in ("bos", "eos") if role in roles
        }
        turns = [{"role": message.role, "content": self._harmless(message.text)} for message in messages]
        try:
            text = self._template.render(messages=turns, add_generation_prompt=True, **variables)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise UserError(f"the chat template in {self._origin} refuses the dialogue: {error}; change it") from None
        return Context(self._encode(text))

    def _harmless(self, text: str) -> str:
        """A message in which no special token is spelled out."""
        return self._special.sub(lambda found: found[0][0] + _MARK + found[0][1:], text.replace(_MARK, ""))

    def _encode(self, text: str) -> list[int]:
        """Tokens of a text, in which special tokens that are spelled out become these tokens."""
        tokens: list[int] = []
        place = 0
        for found in self._special.finditer(text):
            tokens += self._tokenizer.encode(text[place : found.start()].replace(_MARK, ""))
            tokens.append(self._spellings[found[0]])
            place = found.end()
        return tokens + self._tokenizer.encode(text[place:].replace(_MARK, ""))


def template_of(folder: Path, tokenizer: Tokenizer, config: ModelConfig, reading: Reading) -> tuple[Template, str]:
    """The template in a tokenizer's folder if one can be used, else the default; and what it is, in words.

    Raises:
        UserError: the folder's template cannot be read.
    """
    source, origin = _template_in(folder)
    if source is None or config.architecture == "encoder_decoder":
        return DefaultTemplate(tokenizer, config, reading), "the default chat template"
    try:
        return JinjaTemplate(source, tokenizer, origin), f"the chat template in {origin.name}"
    except ModuleNotFoundError:
        words = f"the default chat template, since jinja2, which {origin.name} needs, is not installed"
        return DefaultTemplate(tokenizer, config, reading), words


def _template_in(folder: Path) -> tuple[str | None, Path]:
    path = folder / TEMPLATE_FILE
    try:
        if path.is_file():
            return read_text(path), path
        path = folder / SETTINGS_FILE
        if not path.is_file():
            return None, path
        found: Any = parse_json(read_file(path)).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}); repair it or remove it") from None
    if isinstance(found, list):  # several by name
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found if isinstance(found, str) else None, path


def _refuse(message: str) -> None:
    raise ValueError(message)
