"""`llmscale chat`: a dialogue with an instruction-tuned model."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import for_stream, tell
from data_pipeline.reading.rendering import TemplateFault
from llmscale.checkpoint.model import load_model
from llmscale.generate.commands import settings_for
from llmscale.generate.generator import Generator
from llmscale.generate.prompts import Context, reading_of, require_unicode, room_for
from llmscale.generate.settings import Settings
from llmscale.generate.template import Message, Template, template_of

LEAST_ROOM = 16
"""Tokens that an answer must have room for before turns are dropped, where max_new_tokens is not less."""


class Dialogue:
    """What has been said, kept within the model's context."""

    def __init__(self, generator: Generator, template: Template, settings: Settings, system: str | None = None) -> None:
        self._generator = generator
        self._template = template
        self._settings = settings
        self._system = [Message("system", system)] if system else []
        self.turns: list[Message] = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns = []

    def ask(self, text: str, output: TextIO) -> int:
        """Answer a message, written to `output` as it is made.

        Returns:
            How many of the oldest turns were dropped to make room.

        Raises:
            UserError: the message is no Unicode, or alone exceeds the context; it is not kept.
        """
        require_unicode(text, "the message")
        kept = [*self.turns, Message("user", text)]
        context, room = self._fit(kept)
        dropped = len(self.turns) + 1 - len(kept)
        self.turns = kept
        if dropped:
            tell(f"(the oldest {dropped} turns were dropped to stay within the context)")
        settings = self._settings.within(room, self._template.stop)
        answer, begun = "", False
        for piece in self._generator.stream_contexts([context], settings):
            shown = piece.text if begun else piece.text.lstrip()
            begun = begun or bool(shown)
            answer += shown
            output.write(for_stream(shown, output))
            output.flush()
        output.write("\n")
        output.flush()
        self.turns.append(Message("assistant", answer.strip()))
        return dropped

    def _fit(self, turns: list[Message]) -> tuple[Context, int]:
        """What the model reads, and the room after it; the oldest turns are taken off where there is too little."""
        config = self._generator.config
        wanted = min(self._settings.max_new_tokens, LEAST_ROOM)
        while True:
            context = self._template.context([*self._system, *turns])
            room = room_for(context, config)
            if room >= wanted or (len(turns) == 1 and room >= 1):
                return context, room
            if len(turns) == 1:
                raise UserError(
                    f"the message takes {len(context.key)} tokens, but the model's context is {config.max_positions};"
                    f" shorten it"
                )
            # A question and its answer go together.
            del turns[:2]


def chat(
    checkpoint: Path,
    system: str | None,
    options: Mapping[str, Any],
    template_name: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Read messages from stdin and print answers, until /quit or the end of the input.

    Args:
        options: fields of `Settings`, None where the model's own default holds.
        template_name: as `chosen` of `template_of`.
        device, dtype: where the model computes, and as what.

    Raises:
        UserError: no intact checkpoint, a model that cannot answer, or a chat template that fails or refuses the first
            message of a dialogue.
    """
    require_unicode(system or "", "--system")
    trained = load_model(checkpoint, device, dtype)
    reading = reading_of(trained.config.objective)
    generator = Generator(trained.model, trained.tokenizer, reading)
    folder = Path(trained.checkpoint.tokenizer)
    template, words = template_of(folder, trained.tokenizer, trained.model.config, reading, template_name)
    # A dialogue may go on beyond what one text may have.
    settings = replace(settings_for(options, trained.tokenizer), max_length=0, min_length=0)
    settings.ends(trained.tokenizer)
    dialogue = Dialogue(generator, template, settings, system)
    tell(f"using {words}; /reset starts over, /quit ends")
    asking = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A message ends at a newline, not at a carriage return in it; one that is not UTF-8 does not end the dialogue.
        sys.stdin.reconfigure(newline="\n", errors="surrogateescape")
    while True:
        if asking:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        text = line.strip()
        if not line or text == "/quit":
            return
        if text == "/reset":
            dialogue.reset()
            tell("(forgotten)")
        elif text:
            try:
                dialogue.ask(text, sys.stdout)
            except UserError as error:
                if isinstance(error, TemplateFault) and not (error.refusal and dialogue.turns):
                    raise
                tell(f"llmscale: {error}")
