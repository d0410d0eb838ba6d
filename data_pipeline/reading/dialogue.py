"""Dialogues as token ids by a chat template: what the model reads before a turn, and which tokens it learns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.base.errors import UserError
from data_pipeline.reading.messages import Message
from data_pipeline.reading.rendering import RENDERER, has_jinja
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.chat_files import BUILT_IN, DEFAULT, ChatTemplates
from data_pipeline.tokenizer.spelled import MARK, SpelledReader

TRAINING_DATE = "2024-07-26"
"""What templates take for today in training, so that a run does not depend on when it was started; the day that Llama
3's own template falls back to."""
_SHOWN = 40


class Run(NamedTuple):
    """Consecutive tokens of a dialogue that count alike."""

    tokens: int
    weight: float
    """0: they are not learned."""
    role: str = ""
    """Whose turn is learned."""


class ReadDialogue(NamedTuple):
    """A dialogue to train on, up to the end of its last learned turn."""

    tokens: np.ndarray
    """(T,) int32."""
    runs: list[Run]
    """What is learned, over all tokens."""
    learned: str
    """The learned texts, one after the other, without special tokens."""


class ChatTemplate:
    """A chat template over a tokenizer. Training and generation read dialogues here, so that they agree."""

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        origin: str | os.PathLike[str],
        special: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            source: the template, as jinja.
            origin: its file, for messages.
            special: special tokens by the names that templates know (`bos_token`); by the tokenizer's roles when not
                given.
        """
        self._source = source
        self._tokenizer = tokenizer
        self._origin = f"the chat template in {origin}"
        self._variables = ChatTemplates({}).tokens(texts_of_roles(tokenizer)) if special is None else special
        self._reader = SpelledReader(tokenizer)

    def render(self, messages: Sequence[Mapping[str, str]], *, prompt: bool = True, date: str | None = None) -> str:
        """The text of a dialogue, as transformers' `apply_chat_template` renders it; special tokens that a message
        spells out are broken up by marks.

        Args:
            messages: objects with role and content.
            prompt: whether it ends with what stands before the assistant's next turn.
            date: what the template takes for today, as `YYYY-MM-DD`; None: today.

        Raises:
            TemplateFault: it gives no text of the dialogue.
        """
        return self._render_each([(messages, prompt)], date)[0]

    def context(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that the model reads before it answers the last message.

        Raises:
            TemplateFault: the template gives no text of the dialogue.
        """
        return self.tokens(self.render(_plain(messages)))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of what `context` gives the tokens of, on the day of training.

        Raises:
            TemplateFault: as `context`.
        """
        return self.render(_plain(messages), date=TRAINING_DATE)

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text that the template has made."""
        return self._reader.read(text)

    def read(self, messages: Sequence[Message], weights: Mapping[str, float]) -> ReadDialogue:
        """A dialogue to train on.

        An assistant's turn is learned from behind what generation reads before it to the end of the first special token
        behind its text, which ends it. Where the template ends turns by none that the tokenizer has, what it writes
        behind the text is learned, and the last turn is followed by the end-of-document token. Of other roles, the text
        is learned and what ends it.

        Args:
            weights: how much each token of a turn counts, by role; of roles that are absent, nothing.

        Raises:
            TemplateFault: the template gives no text of the dialogue.
            UserError: the template writes the turns before an answer otherwise once the answer is there, or not at all.
        """
        turns = [
            (number, message.role, weight)
            for number, message in enumerate(messages)
            if (weight := weights.get(message.role, 0.0) if message.weight is None else message.weight)
        ]
        texts_to = _Texts(self, messages, [number for number, *_ in turns])
        whole = texts_to.whole
        ids: list[int] = []
        runs: list[Run] = []
        texts: list[str] = []
        place = 0
        for number, role, weight in turns:
            begin, text_end, end, ended = self._learned(messages, number, texts_to, place)
            before = self._continued(whole, ids, place, begin)
            after = self._continued(whole, before, begin, end)
            if not ended and number == len(messages) - 1:
                after = [*after, self._tokenizer.special["eos"]]
            runs += [Run(len(before) - len(ids), 0.0), Run(len(after) - len(before), weight, role)]
            texts.append(whole[begin:text_end].replace(MARK, ""))
            ids, place = after, end
        return ReadDialogue(np.array(ids, dtype=np.int32), [run for run in runs if run.tokens], "".join(texts))

    def end(self) -> str | None:
        """The special token that ends an assistant's turn; None where there is none, or the template takes no dialogue
        of a question and an answer."""
        messages = [Message("user", "a"), Message("assistant", "b")]
        try:
            texts = _Texts(self, messages, [1])
            whole = texts.whole
            *_, end, ended = self._learned(messages, 1, texts, 0)
        except UserError:
            return None
        found = self._reader.last_special(whole[:end]) if ended else None
        return None if found is None else found[0]

    def _render_each(
        self, dialogues: Sequence[tuple[Sequence[Mapping[str, str]], bool]], date: str | None
    ) -> list[str]:
        """As `render`, of several dialogues with their `prompt`."""
        each = [
            {
                **self._variables,
                "messages": [{key: self._reader.harmless(text) for key, text in turn.items()} for turn in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": prompt,
            }
            for messages, prompt in dialogues
        ]
        return RENDERER.render_each(self._source, each, self._origin, date)

    def _learned(
        self, messages: Sequence[Message], number: int, texts: _Texts, place: int
    ) -> tuple[int, int, int, bool]:
        """Where in the whole text what is learned of a message begins, where its text ends, and where what ends it; and
        whether that is a special token."""
        whole, text = texts.whole, self._reader.harmless(messages[number].text).strip()
        if messages[number].role == "assistant":
            begin = self._prompt_end(number, texts)
        else:
            begin = whole.find(text, place)
            if begin < 0:
                raise UserError(f"{self._origin} leaves out message {number + 1}; give its role no weight")
        bound = self._turn_end(number, texts)
        bound = len(whole) if bound < begin else bound
        found = whole.find(text, begin, bound)
        text_end = bound if found < 0 else found + len(text)
        ends = self._reader.special(whole, begin if found < 0 else text_end)
        if ends is None or ends.start() >= bound:
            return begin, text_end, max(text_end, len(whole[:bound].rstrip())), False
        return begin, ends.start(), ends.end(), True

    def _turn_end(self, number: int, texts: _Texts) -> int:
        """Where a turn ends in the whole text: as far as that is the dialogue up to there. Some templates put a special
        token behind a dialogue that does not go on."""
        text, whole = texts.to_end_of[number], texts.whole
        while not whole.startswith(text):
            last = self._reader.last_special(text)
            text = text[: _common(text, whole)] if last is None else text[: last.start()]
        return len(text)

    def _prompt_end(self, number: int, texts: _Texts) -> int:
        """Where what generation reads before a turn ends in the whole text, which must begin with it."""
        prompt, whole = texts.before[number], texts.whole
        if whole.startswith(prompt):
            return len(prompt)
        short, long = (self._reader.read(text) for text in (prompt, whole))
        differs = next(
            (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), min(len(short), len(long))
        )
        spelled = [
            repr(self._tokenizer.token_text(ids[differs])) if differs < len(ids) else "the end" for ids in (short, long)
        ]
        shared = _common(prompt, whole)
        there, here = (text[shared : shared + _SHOWN].replace(MARK, "") for text in (whole, prompt))
        raise UserError(
            f"{self._origin} is not prefix-consistent: before message {number + 1} generation reads token {differs} as"
            f" {spelled[0]} ({here!r}), but in the whole dialogue it is {spelled[1]} ({there!r}); use a template that"
            f" writes a turn alike whatever follows it"
        )

    def _continued(self, whole: str, ids: list[int], begin: int, end: int) -> list[int]:
        """Token ids up to `end`: those of the text read at once where they go on from the `ids` up to `begin`, as they
        nearly always do; else (where a token would stand on both sides) the rest is read by itself."""
        read = self._reader.read(whole[:end])
        return read if read[: len(ids)] == ids else [*ids, *self._reader.read(whole[begin:end])]


class _Texts:
    """A dialogue as a template renders it for training, and its parts up to some turns; rendered at once."""

    def __init__(self, template: ChatTemplate, messages: Sequence[Message], turns: Sequence[int]) -> None:
        plain = _plain(messages)
        prompts = [number for number in turns if messages[number].role == "assistant"]
        ends = [number for number in turns if number < len(messages) - 1]
        parts = [(plain, False), *((plain[:number], True) for number in prompts)]
        parts += [(plain[: number + 1], False) for number in ends]
        self.whole, *rest = template._render_each(parts, TRAINING_DATE)
        self.before = dict(zip(prompts, rest, strict=False))
        """What generation reads before each turn of the assistant, by its number."""
        self.to_end_of = {len(messages) - 1: self.whole, **dict(zip(ends, rest[len(prompts) :], strict=True))}
        """The dialogue up to each turn, by its number."""


def chat_template(tokenizer: Tokenizer) -> tuple[ChatTemplate, str]:
    """A tokenizer's chat template, or the built-in one, and its source.

    Raises:
        UserError: jinja2 is not installed, or there are templates of which none is the default.
    """
    if not has_jinja():
        raise UserError("jinja2, which chat templates need, is not installed; install it")
    kept = tokenizer.chat or ChatTemplates({})
    if kept.templates and DEFAULT not in kept.templates:
        raise UserError(
            f"the tokenizer has the chat templates {', '.join(sorted(kept.templates))}, none of which is the default;"
            f" name the file of one in data.tokenizer.chat_template"
        )
    source = kept.templates.get(DEFAULT, BUILT_IN)
    origin = kept.files.get(DEFAULT, "the built-in form")
    return ChatTemplate(source, tokenizer, origin, kept.tokens(texts_of_roles(tokenizer))), source


def keep_turn_end(tokenizer: Tokenizer, directory: Path) -> None:
    """Note in a tokenizer's folder which token ends the assistant's turns, so that generation stops there."""
    template, _ = chat_template(tokenizer)
    end = template.end()
    if end is not None and tokenizer.chat is not None and tokenizer.chat.end != end:
        replace(tokenizer.chat, end=end).save(directory)


def texts_of_roles(tokenizer: Tokenizer) -> dict[str, str]:
    """How a tokenizer spells its special tokens, by role."""
    return {role: tokenizer.token_text(token) for role, token in tokenizer.special.items()}


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _common(first: str, second: str) -> int:
    """Characters at the beginning that two texts share."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
