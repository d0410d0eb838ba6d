"""`llmscale generate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from data_pipeline.base.errors import UserError
from data_pipeline.base.lines import file_lines
from data_pipeline.base.terminal import for_stream, tell, visible_json
from data_pipeline.sources.first_bytes import LOOKED_AT, pointer
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import conventions_of
from llmscale.checkpoint.model import load_model
from llmscale.config.generation import unmet
from llmscale.generate.defaults import settings_of
from llmscale.generate.generator import Generator
from llmscale.generate.prompts import reading_of
from llmscale.generate.settings import Settings


def generate_texts(
    checkpoint: Path,
    prompts: Sequence[str],
    file: Path | None,
    as_json: bool,
    options: Mapping[str, Any],
    raw: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Print what follows each prompt: of one prompt as it is made, of several in their order, or JSON lines.

    Args:
        file: a file with a prompt a line, after `prompts`.
        options: fields of `Settings`, None where the model's own default holds.
        raw: put no special token around prompts.
        device, dtype: where the model computes, and as what.

    Raises:
        UserError: no prompt, no intact checkpoint, or what `Generator.stream` refuses.
    """
    prompts = [*prompts, *(_lines(file) if file is not None else [])]
    if not prompts:
        raise UserError("generate needs a prompt; give --prompt TEXT or --prompts FILE")
    trained = load_model(checkpoint, device, dtype)
    settings = settings_for(options, trained.tokenizer)
    generator = Generator(trained.model, trained.tokenizer, reading_of(trained.config.objective), raw=raw)
    # What follows a source is a text of its own.
    continues = generator.config.architecture == "decoder" and generator.reading != "source"
    if len(prompts) == 1 and not as_json:
        echoed = not continues
        for piece in generator.stream(prompts, settings):
            _echo(piece.text if echoed else prompts[0] + piece.text, nl=False)
            echoed = True
        click.echo()
        return
    done = {}
    shown = 0
    for piece in generator.stream(prompts, settings):
        if piece.completion is not None:
            done[piece.prompt] = piece.completion
        while shown in done:
            completion, prompt = done.pop(shown), prompts[shown]
            if as_json:
                row = {"prompt": prompt, "text": completion.text, "tokens": len(completion.tokens)}
                text = json.dumps({**row, "finish": completion.finish}, ensure_ascii=False)
                click.echo(visible_json(text) if sys.stdout.isatty() else text)
            else:
                _echo(f"--- {shown + 1}\n{prompt if continues else ''}{completion.text}")
            shown += 1


def settings_for(options: Mapping[str, Any], tokenizer: Tokenizer) -> Settings:
    """As `settings_of`; says on stderr what the model's defaults ask for in vain."""
    kept = conventions_of(tokenizer)
    lacking = unmet(kept.generation) if kept is not None else []
    if lacking:
        text = f"note: the model's generation_config.json asks for {', '.join(lacking)}, which llmscale does not do"
        tell(text)
    return settings_of(options, tokenizer)


def _echo(text: str, nl: bool = True) -> None:
    click.echo(for_stream(text, sys.stdout), nl=nl)


def _lines(path: Path) -> list[str]:
    """The prompts of a file: its lines, without empty ones.

    Raises:
        UserError: it cannot be read, is no text or has no prompts.
    """
    try:
        data = path.read_bytes()
        if (is_pointer := pointer(data[:LOOKED_AT])) is not None:
            raise UserError(f"--prompts: {path} {is_pointer}")
        lines = file_lines(data.decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"--prompts: cannot read {path}: {error.strerror}; name a text file") from None
    except UnicodeDecodeError:
        raise UserError(f"--prompts: {path} is not UTF-8 text; give a file with a prompt a line") from None
    if not any(lines):
        raise UserError(f"--prompts: {path} is empty; give a file with a prompt a line")
    return [line for line in lines if line]
