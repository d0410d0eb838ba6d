"""Text from a trained decoder or encoder-decoder: greedy, sampled or by beam search, many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.tokenizer import Tokenizer
from llmscale.generate.generator import Completion, Generator, Piece
from llmscale.generate.prompts import Reading, reading_of
from llmscale.generate.settings import Settings
from llmscale.model import Transformer

__all__ = ["Completion", "Generator", "Piece", "Reading", "Settings", "generate", "reading_of"]


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: Settings | None = None,
    reading: Reading = "document",
) -> list[Completion]:
    """What follows each prompt. A `Generator` does the same for many calls, and streams.

    Args:
        model: a decoder or an encoder_decoder, in evaluation mode.
        settings: greedy decoding of at most 128 tokens when not given.
        reading: how a decoder reads prompts (`reading_of` tells it from the objective).

    Raises:
        UserError: see `Generator.stream`; or the model is an encoder.
    """
    return Generator(model, tokenizer, reading).generate(prompts, settings or Settings())
