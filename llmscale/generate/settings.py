"""How text is generated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import stop_tokens

LEAST_TEMPERATURE = 1e-6
"""Below it, logits divided by the temperature might leave the range of fp32."""


@dataclass(frozen=True)
class Settings:
    """Greedy decoding unless a temperature (sampling) or beams (beam search) are given.

    Raises:
        UserError: a setting is out of range, or two cannot go together.
    """

    max_new_tokens: int = 128
    """Most tokens to add; the end of the text may come first."""
    shorten: bool = False
    """Add fewer where the model's context has no room for as many."""
    temperature: float = 0.0
    """Divides the logits before sampling; 0 always takes the most probable token."""
    top_k: int = 0
    """Sample from the k most probable tokens only; 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest most probable tokens whose probabilities reach this sum (Holtzman et al. 2020, section
    3.1), after temperature and top_k; 1: from all."""
    repetition_penalty: float = 1.0
    """Positive logits of the tokens that the decoder has read are divided by it, negative ones multiplied (CTRL, Keskar
    et al. 2019, section 4.1, for scores of either sign as transformers does); beam search applies it to the
    log-probabilities. 1: none."""
    beams: int = 1
    """Hypotheses that beam search keeps; 1: no beam search."""
    length_penalty: float = 1.0
    """Beam search divides a hypothesis' log-probability by its length to this power: above 0 favours long ones."""
    early_stopping: bool | Literal["never"] = False
    """When beam search ends, as in transformers. True: as soon as there are `beams` finished hypotheses; False: once
    no running one can win at its present length; "never": once none can win at any length."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the result."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end it, besides those that end the model's own texts."""
    max_length: int = 0
    """Most tokens of the decoder, those that it has read included; 0: as many as there is room for."""
    min_length: int = 0
    """Least tokens of the decoder, those that it has read included, before a token may end the text."""
    min_new_tokens: int = 0
    """Least new tokens before a token may end the text."""
    suppress_tokens: tuple[int, ...] = ()
    """Token ids that never come."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Token ids that do not come first."""
    first_token: int | None = None
    """The token that must come first behind the one that a decoder starts from."""
    last_tokens: tuple[int, ...] = ()
    """Tokens one of which must come where no other has room behind it."""
    seed: int = 0
    """Decides what is drawn, together with the prompt itself and nothing else."""
    batch: int = 8
    """Most prompts in one forward pass."""
    exact: bool = False
    """Whether the text of a prompt must not depend on the other prompts or on `batch`, not even by rounding: prompts
    are padded to multiples of 16 tokens, then kept as long as a power of 2, and 16 at least are continued together. Not
    with beams."""

    def __post_init__(self) -> None:
        for wrong, sentence in (
            (self.max_new_tokens < 1, f"max_new_tokens is {self.max_new_tokens}, but must be at least 1"),
            (
                not (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf),
                f"temperature is {self.temperature}, but must be 0 (greedy) or a finite number from"
                f" {LEAST_TEMPERATURE} on",
            ),
            (self.top_k < 0, f"top_k is {self.top_k}, but must be 0 (all tokens) or more"),
            (not 0 < self.top_p <= 1, f"top_p is {self.top_p}, but must be above 0 and at most 1"),
            (
                not 0 < self.repetition_penalty < math.inf,
                f"repetition_penalty is {self.repetition_penalty}, but must be a finite number above 0 (1: none)",
            ),
            (self.beams < 1, f"beams is {self.beams}, but must be 1 (no beam search) or more"),
            (
                not math.isfinite(self.length_penalty),
                f"length_penalty is {self.length_penalty}, but must be a finite number",
            ),
            *(
                (length < 0, f"{name} is {length}, but must be 0 (none) or more")
                for name, length in (
                    ("max_length", self.max_length),
                    ("min_length", self.min_length),
                    ("min_new_tokens", self.min_new_tokens),
                )
            ),
            (self.batch < 1, f"batch is {self.batch}, but must be at least 1"),
            ("" in self.stop, "stop holds an empty text, which would end everything at once; leave it out"),
            (
                self.beams > 1 and self.temperature > 0,
                f"beams is {self.beams} and temperature is {self.temperature}, but beam search does not sample; set"
                " temperature=0 or beams=1",
            ),
        ):
            if wrong:
                raise UserError(sentence)

    def within(self, room: int, stop: tuple[str, ...] = ()) -> Settings:
        """The same with at most `room` new tokens, and more stop texts."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, room), stop=(*self.stop, *stop))

    def ends(self, tokenizer: Tokenizer) -> list[int]:
        """Tokens that end a text, sorted.

        Raises:
            UserError: one of `stop_tokens` is outside the vocabulary.
        """
        for token in self.stop_tokens:
            if not 0 <= token < tokenizer.vocab_size:
                raise UserError(
                    f"stop token {token} is outside the vocabulary, whose {tokenizer.vocab_size} tokens are 0 to"
                    f" {tokenizer.vocab_size - 1}; name one of them"
                )
        return sorted({*stop_tokens(tokenizer), *self.stop_tokens})
