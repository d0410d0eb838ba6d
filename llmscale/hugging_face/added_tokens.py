"""What a Hugging Face directory says of its tokenizer beside the vocabulary files: tokens that it adds to them, such as
`<|im_end|>`, and a class that cuts text by rules of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.base.errors import UserError
from llmscale.hugging_face.files import read_json

if TYPE_CHECKING:
    import tokenizers

_FILE = "added_tokens.json"
_SETTINGS = "tokenizer_config.json"
_NAMES = "special_tokens_map.json"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's and Qwen3's tokenizer cuts text into words."""
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def read_added(place: Path, known: Mapping[str, int]) -> list[tuple[int, str, dict[str, bool]]]:
    """Id, text and flags of each token behind the vocabulary, by increasing id: those of `added_tokens_decoder` in
    tokenizer_config.json, else those of added_tokens.json, as transformers reads them.

    Args:
        known: ids of the vocabulary's tokens by their text.

    Raises:
        UserError: a file says something else.
    """
    settings, names, old = (_object(place / name) for name in (_SETTINGS, _NAMES, _FILE))
    path = place / (_SETTINGS if settings.get("added_tokens_decoder") else _FILE)
    special = set(_texts([value for table in (settings, names) for value in table.values()]))
    last = max(known.values(), default=-1)
    found = []
    try:
        entries = settings.get("added_tokens_decoder") or {number: {"content": text} for text, number in old.items()}
        for number, entry in entries.items():
            text = entry["content"]
            if not isinstance(text, str) or isinstance(number, bool | float):
                raise TypeError(f"{number!r:.40} is {text!r:.40}")
            flags = {"special": text in special, "normalized": text not in special}
            flags |= {key: bool(entry[key]) for key in _FLAGS if key in entry}
            # An id within the vocabulary is the same token in another spelling, such as with spaces for marks.
            if text not in known and int(number) > last:
                found.append((int(number), text, flags))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not say which tokens are added ({error}); repair it") from None
    return sorted(found, key=lambda token: token[0])


def add_tokens(
    backend: tokenizers.Tokenizer, added: list[tuple[int, str, dict[str, bool]]], place: Path, *, plain: bool
) -> tokenizers.Tokenizer:
    """The library's tokenizer with the tokens of `read_added`, under their own ids.

    Args:
        plain: text is compared with them before it is normalised, whatever they say: the normaliser puts marks for
            spaces into it.

    Raises:
        UserError: they do not follow the vocabulary.
    """
    from tokenizers import AddedToken

    for number, text, flags in added:
        backend.add_tokens([AddedToken(text, **{**flags, **({"normalized": False} if plain else {})})])
        if backend.token_to_id(text) != number:
            raise UserError(
                f"{place} adds the token {text!r:.60} with id {number}, but the next one behind its vocabulary is"
                f" {backend.token_to_id(text)}; give a tokenizer.json, which save_pretrained of transformers'"
                f" AutoTokenizer writes"
            )
    return backend


def cut_as(backend: tokenizers.Tokenizer, name: str) -> bool:
    """Give GPT-2's tokenizer the rules of another of transformers' classes that has such files; whether it has any."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    if name not in ("Qwen2Tokenizer", "GPTNeoXTokenizer"):
        return False
    backend.normalizer = normalizers.NFC()
    if name == "Qwen2Tokenizer":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    return True


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, "repair it or remove it") if path.is_file() else {}


def _texts(values: list[Any]) -> list[str]:
    """The texts of special tokens as settings hold them: themselves, in an object, or in a list of both."""
    found = []
    for value in values:
        if isinstance(value, list):
            found += _texts(value)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found.append(text)
    return found
