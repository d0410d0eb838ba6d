"""Chat templates of Hugging Face directories, kept in a checkpoint and written back."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.base.durable import write_json
from data_pipeline.tokenizer.chat_files import NAMED_TOKENS, SETTINGS_FILE, read_chat
from llmscale.hugging_face.files import read_json
from llmscale.hugging_face.tokenizers import OWN_FOLDER


def keep_chat(folder: Path, tokenizer: Path | None, destination: Path) -> None:
    """Keep the chat templates of a Hugging Face directory beside our copy of its tokenizer.

    Args:
        tokenizer: another folder of the tokenizer's files, whose templates come first.
        destination: the folder of our copy.

    Raises:
        UserError: a template cannot be read.
    """
    places = [tokenizer, folder, folder / OWN_FOLDER]
    found = next((chat for place in places if place is not None and (chat := read_chat(place))), None)
    if found is not None:
        found.save(destination)


def export_chat(kept: Path, folder: Path) -> None:
    """Write the chat templates of a checkpoint's tokenizer as transformers does, and give the written tokenizer the
    special tokens by which those templates know them.

    Args:
        kept: the folder of the checkpoint's tokenizer.
        folder: a Hugging Face directory with the tokenizer.
    """
    found = read_chat(kept)
    if found is None:
        return
    found.export(folder)
    path = folder / SETTINGS_FILE
    settings = read_json(path, "export it again")
    for name, text in (found.special or {}).items():
        if text is not None:
            settings[name] = text
        elif name in NAMED_TOKENS:
            settings.pop(name, None)
    write_json(path, settings)
