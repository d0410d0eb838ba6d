"""A model's control characters on a terminal, and in a file."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmscale.generate import commands
from llmscale.generate.generator import Completion, Piece

TEXT = "a\x1b]0;title\x07\x9b2J\n中"


class _Generator:
    def __init__(self, *_: Any, raw: bool = False) -> None:
        self.config = SimpleNamespace(architecture="decoder")
        self.reading = "text"

    def stream(self, prompts: Sequence[str], settings: Any) -> Iterator[Piece]:
        for number in range(len(prompts)):
            yield Piece(number, TEXT, Completion(TEXT, [1], "length"))


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("prompts", "as_json"), [(["p\x1b"], False), (["p", "q"], False), (["p"], True)])
def test_escapes_are_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, prompts: list[str], as_json: bool
) -> None:
    output = type("Terminal", (io.StringIO,), {"isatty": lambda _: terminal})()
    trained = SimpleNamespace(model=None, tokenizer=None, config=SimpleNamespace(objective=None))
    monkeypatch.setattr(commands, "load_model", lambda *_: trained)
    monkeypatch.setattr(commands, "reading_of", lambda _: None)
    monkeypatch.setattr(commands, "settings_for", lambda *_: None)
    monkeypatch.setattr(commands, "Generator", _Generator)
    monkeypatch.setattr(sys, "stdout", output)
    commands.generate_texts(Path("x"), prompts, None, as_json, {})  # type: ignore[arg-type]
    written = output.getvalue()
    if terminal:
        assert all(character.isprintable() or character == "\n" for character in written)
        assert "title" in written
        assert "中" in written
    elif as_json:
        assert json.loads(written)["text"] == TEXT
    else:
        assert written.count(TEXT) == len(prompts)
    if terminal and as_json:
        assert json.loads(written)["text"] == TEXT
