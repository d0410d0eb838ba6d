"""Commands for the user to paste into a shell, whatever a path has in it."""

import json
import shlex
from pathlib import Path

import yaml


def override_word(key: str, value: str | Path) -> str:
    """`key=value` as one word of a shell that reads back as that text."""
    text = str(value)
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return shlex.quote(f"{key}={text if plain else json.dumps(text, ensure_ascii=False)}")
