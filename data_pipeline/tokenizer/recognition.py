"""What a file is that is no tokenizer of the kind it was given for."""

from __future__ import annotations

import re
from pathlib import Path

import orjson

_RANKED = re.compile(rb"(?:[A-Za-z0-9+/]+={0,2}[ \t]+\d+\r?\n){3}")
"""Lines of a token in base64 and its rank."""
_KIND = "set data.tokenizer.kind to {}"


def what_it_is(contents: bytes, path: Path) -> str | None:
    """What a file is and what to do about it, as the end of a sentence; None where it is nothing known.

    Args:
        contents: of the file.
        path: its own; files beside it and in the folder above may be named.
    """
    if contents.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, which stands for the file itself; fetch that with `git lfs pull`"
    if _RANKED.match(contents):
        return (
            f"is a tiktoken vocabulary of {len(contents.splitlines()):,} tokens (in base64, with ranks), which does not"
            f" say how text is cut into words, nor which special tokens there are; {_json_instead(path)}"
        )
    return _kind_of_json(contents, path) or _kind_of_text(contents)


def _kind_of_json(contents: bytes, path: Path) -> str | None:
    try:
        layout = orjson.loads(contents.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return None
    if not isinstance(layout, dict):
        return None
    tokens, model = layout.get("vocab"), layout.get("model")
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], dict) and "token_bytes" in tokens[0]:
        found = (
            f"is a tekken.json of mistral-common, of {len(tokens):,} tokens, which is not read; {_json_instead(path)}"
        )
    elif isinstance(model, dict) and "vocab" in model:
        found = f"is a tokenizer.json of the tokenizers library; {_KIND.format('huggingface')}"
    elif len(layout) > 1 and all(type(number) is int for number in layout.values()):
        found = f"is a vocab.json of GPT-2's kind; {_KIND.format('gpt2')}, with its merges.txt beside it"
    elif "tokenizer_class" in layout or "added_tokens_decoder" in layout:
        found = "holds the settings of a tokenizer, not its vocabulary; name the tokenizer.json or the vocabulary file"
    else:
        found = None
    return found


def _kind_of_text(contents: bytes) -> str | None:
    lines = contents.splitlines()
    if b"[UNK]" in lines and b"[CLS]" in lines:
        return f"is a vocab.txt of BERT's kind; {_KIND.format('wordpiece')}"
    if contents.startswith(b"#version: "):
        return "is a merges.txt; name the vocab.json beside it"
    # A protocol buffer: its first field is the first piece, whose text comes first in it.
    if re.match(rb"\x0a.\x0a.", contents, re.DOTALL) and b"\xe2\x96\x81" in contents:
        return f"looks like a SentencePiece model; {_KIND.format('sentencepiece')}"
    return None


def _json_instead(path: Path) -> str:
    """Which tokenizer.json to take."""
    found = next(
        (str(p) for folder in (path.parent, path.parent.parent) if (p := folder / "tokenizer.json").is_file()), ""
    )
    place = found or "the model's tokenizer.json"
    written = "" if found else "; where there is none, save_pretrained of transformers' AutoTokenizer writes it"
    return (
        f"give {place} (data.tokenizer.kind: huggingface; `llmscale import` takes its folder by --tokenizer){written}"
    )
