"""Questions and answers out of held-out dialogues: what a model that is tuned on dialogues reads before the last turn
of the assistant, and that turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import heldout_values
from data_pipeline.objectives.chat import ChatObjective
from data_pipeline.reading.dialogue import TRAINING_DATE, chat_template
from data_pipeline.reading.messages import Message, merged_system, read_messages
from data_pipeline.tokenizer import Tokenizer


class HeldOutDialogues:
    """Read by the tokenizer's chat template, as in training."""

    def __init__(self, data: DataConfig, objective: ChatObjective, tokenizer: Tokenizer, room: int) -> None:
        """
        Args:
            room: most tokens in front of an answer; dialogues with more are left out.

        Raises:
            UserError: as `chat_template`.
        """
        self._data, self._tokenizer, self._room = data, tokenizer, room
        self._merges = objective.system == "merge"
        self._template, source = chat_template(tokenizer)
        decides = [source, TRAINING_DATE, objective.system, room]
        self.form = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        """A digest of what decides the pairs besides the dialogues."""

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Prompt and answer of each dialogue that has both, in their order."""
        for values in heldout_values(self._data, self._tokenizer):
            if "messages" not in values:
                continue  # a plain text, which is learned beside dialogues
            try:
                messages = read_messages(values["messages"])
            except ValueError as error:
                raise UserError(f"a held-out dialogue: {error}") from None
            pair = self._pair(merged_system(messages) if self._merges else messages)
            if pair is not None:
                yield pair

    def _pair(self, messages: Sequence[Message]) -> tuple[str, str] | None:
        answers = [
            number
            for number, message in enumerate(messages)
            if number and message.role == "assistant" and message.weight != 0 and message.text.strip()
        ]
        if not answers:
            return None
        prompt = self._template.prompt(messages[: answers[-1]])
        if len(self._template.tokens(prompt)) > self._room:
            return None
        return prompt, messages[answers[-1]].text.strip()
