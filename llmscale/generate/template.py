"""Dialogues as the model was trained to read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_pipeline.base.errors import UserError
from data_pipeline.reading.dialogue import ChatTemplate, texts_of_roles
from data_pipeline.reading.messages import Message
from data_pipeline.reading.rendering import has_jinja
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.chat_files import DEFAULT, ChatTemplates, read_chat, read_template
from data_pipeline.tokenizer.frame import text_frame
from llmscale.config import ModelConfig
from llmscale.generate.prompts import Context, Reading, start_token

NO_TEMPLATE = "none"
"""What is chosen in place of a template to have the default form."""


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
        tokenizer, eos = self._tokenizer, self._tokenizer.special["eos"]
        begin, end = text_frame(tokenizer, source=self._two or self._reading == "source")
        system = "".join(message.text + "\n\n" for message in messages if message.role == "system")
        turns = [message for message in messages if message.role != "system"]
        texts = [turn.text for turn in turns]
        texts[0] = system + texts[0]
        if self._two:
            return Context([start_token(tokenizer)], [*begin, *tokenizer.encode("\n".join(texts)), *end])
        if self._reading == "source":
            turns_ids = [token for ids in tokenizer.encode_batch(texts) for token in (*ids.tolist(), eos)]
            return Context([*begin, *turns_ids])
        lines = [f"{turn.role.capitalize()}: {turn.text}\n" for turn in turns]
        document = tokenizer.encode(system + "".join(lines) + "Assistant:")
        return Context([*begin, *document], prefix=self._reading == "prefix")


class JinjaTemplate:
    """A Hugging Face chat template; training reads dialogues by the same."""

    stop: tuple[str, ...] = ()

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        origin: Path,
        special: Mapping[str, str] | None = None,
        *,
        two: bool = False,
    ) -> None:
        """The template `source` of the file `origin`.

        Args:
            special: special tokens by the names that templates know (`bos_token`); by the tokenizer's roles when not
                given.
            two: the model is an encoder_decoder, whose encoder reads the dialogue.
        """
        self.template = ChatTemplate(source, tokenizer, origin, special)
        self._tokenizer = tokenizer
        self._two = two

    def context(self, messages: Sequence[Message]) -> Context:
        """As in `Template`.

        Raises:
            TemplateFault: it gives no text of the dialogue.
        """
        tokens = self.template.context(messages)
        return Context([start_token(self._tokenizer)], tokens) if self._two else Context(tokens)


def template_of(
    folder: Path, tokenizer: Tokenizer, config: ModelConfig, reading: Reading, chosen: str | None = None
) -> tuple[Template, str]:
    """The template to use, and what it is, in words.

    Args:
        folder: that of the checkpoint's tokenizer, with the checkpoint's templates.
        chosen: the name of one of them, the path of another's file, or `none` for the default form; the checkpoint's
            `default` when not given, and the default form where it has none.

    Raises:
        UserError: a template cannot be read, or there is none of that name.
    """
    if chosen == NO_TEMPLATE:
        return DefaultTemplate(tokenizer, config, reading), "the default chat template"
    kept = read_chat(folder) or ChatTemplates({})
    found = _chosen(kept, folder, chosen)
    if found is None:
        return DefaultTemplate(tokenizer, config, reading), "the default chat template"
    source, origin, words = found
    if not has_jinja():
        if chosen is not None:
            raise UserError(f"jinja2, which {words} needs, is not installed; install it, or leave --template out")
        missing = f"the default chat template, since jinja2, which {origin.name} needs, is not installed"
        return DefaultTemplate(tokenizer, config, reading), missing
    special = kept.tokens(texts_of_roles(tokenizer))
    return JinjaTemplate(source, tokenizer, origin, special, two=config.architecture == "encoder_decoder"), words


def _chosen(kept: ChatTemplates, folder: Path, chosen: str | None) -> tuple[str, Path, str] | None:
    """(template, its file, what it is in words)."""
    name = chosen or DEFAULT
    if name in kept.templates:
        origin = folder / kept.files[name]
        return (
            kept.templates[name],
            origin,
            f"the chat template {'' if name == DEFAULT else name + ' '}in {origin.name}",
        )
    if chosen is None:
        if kept.templates:
            raise UserError(
                f"{folder} has the chat templates {', '.join(sorted(kept.templates))}, none of which is the default;"
                f" name one with --template, or none with --template {NO_TEMPLATE}"
            )
        return None
    path = Path(chosen)
    if not path.is_file():
        names = ", ".join([*sorted(kept.templates), NO_TEMPLATE])
        raise UserError(f"--template is {chosen!r}, which is neither a file nor one of {names}; give one of them")
    return read_template(path), path, f"the chat template in {path.name}"
