"""Prompts as the model was trained to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.base.encodings import is_unicode
from data_pipeline.base.errors import UserError
from data_pipeline.objectives import ObjectiveSettings
from data_pipeline.tokenizer import Tokenizer, frame
from llmscale.config import ModelConfig
from llmscale.objectives import Reading, model_side


@dataclass(frozen=True)
class Context:
    """What a model reads before the first new token."""

    tokens: list[int]
    """For the decoder."""
    source: list[int] | None = None
    """For the encoder of an encoder-decoder."""
    prefix: bool = False
    """Whether `tokens` all see each other."""

    @property
    def key(self) -> list[int]:
        """The tokens that tell one prompt from another."""
        return self.tokens if self.source is None else self.source


def reading_of(objective: ObjectiveSettings) -> Reading:
    """How a decoder trained by this objective reads a prompt."""
    return model_side(objective).reading


def needs_source(config: ModelConfig, reading: Reading) -> bool:
    """Whether a model continues a source text, which may not be empty."""
    return config.architecture == "encoder_decoder" or reading == "source"


def require_generative(config: ModelConfig) -> None:
    """Raise UserError for a model that continues no text."""
    if why := config.cannot_generate:
        setting, _, value = why.partition(" is ")
        raise UserError(
            f"{setting} of this checkpoint is {value}, which continues no text; give a checkpoint of a decoder"
            " or an encoder_decoder"
        )


def require_unicode(text: str, name: str) -> None:
    """Raise UserError for a text, called `name`, of an argument or a line whose bytes are not UTF-8."""
    if not is_unicode(text):
        raise UserError(f"{name} is {text[:40]!a}, whose bytes are not UTF-8; write it in UTF-8")


def contexts_of(
    prompts: Sequence[str], tokenizer: Tokenizer, config: ModelConfig, reading: Reading, *, raw: bool = False
) -> list[Context]:
    """What the model reads of each prompt; an empty one begins a document.

    Args:
        raw: put no special token around prompts; else those by which the model was trained.

    Raises:
        UserError: an empty prompt where a source text is needed, or where there would be nothing to read; one that is
            no Unicode.
    """
    two = config.architecture == "encoder_decoder"
    source = needs_source(config, reading)
    begin, end = frame.text_frame(tokenizer, source=source)
    if raw:
        begin = end = []
    for number, prompt in enumerate(prompts):
        require_unicode(prompt, _name(number, len(prompts)))
    found = []
    for number, tokens in enumerate(tokenizer.encode_batch(prompts)):
        if source and not len(tokens):
            reader = "the encoder of this model" if two else "this model, trained on pairs of texts,"
            raise UserError(f"{_name(number, len(prompts))} is empty, but {reader} needs a source text; give one")
        ids = [*begin, *tokens.tolist(), *end]
        if two:
            found.append(Context([start_token(tokenizer)], ids))
        elif reading == "source":
            found.append(Context(ids))
        else:
            found.append(Context(ids or [_beginning(tokenizer, number, len(prompts), raw)], prefix=reading == "prefix"))
    return found


def _beginning(tokenizer: Tokenizer, number: int, count: int, raw: bool) -> int:
    """The token that a text begins from where neither a prompt nor a special token stands in front of it."""
    if raw:
        raise UserError(f"{_name(number, count)} is empty, and --raw puts no token in front of it; give a text")
    return tokenizer.special.get("bos", tokenizer.special["eos"])


def start_token(tokenizer: Tokenizer) -> int:
    """The token that the decoder of an encoder-decoder starts from: pad, as in training, or an imported model's own.

    Raises:
        UserError: the tokenizer has none.
    """
    try:
        return frame.start_token(tokenizer)
    except KeyError:
        raise UserError(
            "the checkpoint's tokenizer has no pad token, which the decoder of an encoder_decoder starts from"
        ) from None


def room_for(context: Context, config: ModelConfig) -> int:
    """New tokens for which there is room after a context; 0 or less where it is too long itself."""
    if context.source is not None and len(context.source) > config.max_positions:
        return config.max_positions - len(context.source)
    # What starts the decoder is read, the last new token is not.
    return config.max_positions - (0 if context.source is not None else len(context.tokens))


def require_room(contexts: Sequence[Context], config: ModelConfig, max_new_tokens: int) -> None:
    """Raise UserError, with both lengths, unless every context and its new tokens fit into the model's context."""
    limit = config.max_positions
    for number, context in enumerate(contexts):
        room, read, name = room_for(context, config), len(context.key), _name(number, len(contexts))
        if room < 1:
            most = limit if context.source is not None else limit - 1
            raise UserError(
                f"{name} has {read} tokens, but the model's context is {limit}; shorten the prompt to {most} or less"
            )
        if max_new_tokens > room:
            beside = "" if context.source is not None else f"the {read} tokens of {name} and "
            raise UserError(
                f"{beside}{max_new_tokens} new tokens exceed the model's context of {limit};"
                f" {'' if context.source is not None else 'shorten the prompt, or '}set --max-new-tokens to {room} or"
                f" less"
            )


def require_length(contexts: Sequence[Context], max_length: int) -> None:
    """Raise UserError unless every context leaves room for a token below the model's own max_length."""
    for number, context in enumerate(contexts):
        if len(context.tokens) >= max_length:
            raise UserError(
                f"{_name(number, len(contexts))} has {len(context.tokens)} tokens, but max_length of the model's"
                f" generation_config.json is {max_length}; give --max-new-tokens"
            )


def _name(number: int, count: int) -> str:
    return "the prompt" if count == 1 else f"prompt {number + 1} of {count}"
