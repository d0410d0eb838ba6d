"""How text is generated where nobody says otherwise: as the model's own generation_config.json has it, or as we do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import conventions_of
from llmscale.config.generation import read_defaults
from llmscale.generate.settings import Settings

TEMPERATURE = 0.8
"""What the commands sample with where neither the user nor the model says."""


def settings_of(options: Mapping[str, Any], tokenizer: Tokenizer) -> Settings:
    """How to generate: as `options` say, else as the model's own defaults, else as ours.

    Args:
        options: fields of `Settings`; those that are None or empty were not given.

    Raises:
        UserError: a setting is out of range, or two cannot go together.
    """
    kept = conventions_of(tokenizer)
    values = read_defaults(kept.generation) if kept is not None else {}
    try:
        Settings(**values)
    except UserError as error:
        raise UserError(f"generation_config.json of the imported model: {error}; repair it and import again") from None
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    if "max_new_tokens" in given:
        values.pop("max_length", None)
    else:
        values["shorten"] = True
    # Beam search does not sample: whichever of the two the user asks for decides.
    if given.get("temperature", 0) > 0 and "beams" not in given:
        values["beams"] = 1
    if given.get("beams", 1) > 1:
        values["temperature"] = 0.0
    values |= given
    values.setdefault("temperature", TEMPERATURE if values.get("beams", 1) == 1 else 0.0)
    return Settings(**values)
