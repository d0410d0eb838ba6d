"""A model's conventions in a Hugging Face directory: which special tokens its tokenizer puts around a text, which end
what it writes, and its defaults of generation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.conventions import Conventions
from llmscale.config.generation import IDS, KEYS, TOKENS, read_defaults, token_ids, unmet
from llmscale.hugging_face.classes import tokenizer_class
from llmscale.hugging_face.files import CONFIG, GENERATION, read_json

if TYPE_CHECKING:
    import tokenizers

_SETTINGS = "tokenizer_config.json"
_BEGINNING = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
"""transformers' tokenizers that put the begin token in front of a text unless `add_bos_token` says otherwise."""
_FROM_CONFIG = "_from_model_config"
"""The key by which transformers marks what it took from config.json, defaults of its classes included."""


def read_conventions(
    folder: Path,
    place: Path,
    values: Mapping[str, Any],
    tokenizer: StoredTokenizer,
    architecture: str,
    vocab_size: int,
    predicts: bool = False,
) -> tuple[Conventions, list[str]]:
    """The conventions of a directory, and sentences on what is not carried over.

    Args:
        folder: the model's.
        place: the tokenizer's, or `bytes`.
        values: config.json.
        tokenizer: has its roles.
        architecture: of the model.
        vocab_size: of the model.
        predicts: whether it has a trained head for texts.

    Raises:
        UserError: a value of the wrong kind, or a token id that the model does not have.
    """
    config = {key: value for key, value in values.items() if key.endswith("_token_id") or key in KEYS}
    path = folder / GENERATION
    if path.is_file():
        generation = read_json(path, "repair it or remove it")
    else:
        path = folder / CONFIG
        generation = {_FROM_CONFIG: True, **{key: value for key, value in config.items() if value is not None}}
    notes = _check(config, folder / CONFIG, vocab_size, defaults=config)
    if path.name == GENERATION:
        notes += _check(generation, path, vocab_size, defaults=config if generation.get(_FROM_CONFIG) is True else {})
    lacking = unmet(generation)
    if lacking:
        notes.append(f"{path} asks for {', '.join(lacking)}, which llmscale does not do; export keeps it")
    begin, end = (None, ()) if architecture == "encoder" else _frame(place, values, tokenizer)
    starts = [*token_ids(config, "decoder_start_token_id"), *token_ids(generation, "decoder_start_token_id")]
    start = None
    if architecture == "encoder_decoder":
        own = [tokenizer.special[role] for role in ("pad", "bos", "eos") if role in tokenizer.special]
        start = next((token for token in starts if token < vocab_size), own[0])
    return Conventions(
        begin=begin,
        end=end,
        between=_between(place, values, tokenizer) if architecture == "encoder" else (),
        head=_around_texts(place, values, tokenizer) if predicts else None,
        start=start,
        stop=tuple(token for token in token_ids(generation, "eos_token_id") if token < vocab_size),
        generation=generation,
        config=config,
    ), list(dict.fromkeys(notes))


def _check(values: Mapping[str, Any], path: Path, vocab_size: int, defaults: Mapping[str, Any]) -> list[str]:
    """Refuse values of the wrong kind, and ids that the model does not have; but a single id that is also in `defaults`
    may be what a class of transformers has for its published size, and is passed over with a note."""
    notes = []
    try:
        read_defaults(values)
        for key in IDS:
            for token in token_ids(values, key):
                if 0 <= token < vocab_size:
                    continue
                unset = key not in TOKENS and type(values[key]) is int and values[key] == defaults.get(key)
                if unset and token >= 0:
                    notes.append(f"{key} {token} of {path.name} is outside the model's {vocab_size} tokens: not used")
                    continue
                raise UserError(
                    f"{key} names token {token}, but the model's {vocab_size} tokens are 0 to {vocab_size - 1};"
                    f" repair it"
                )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return notes


def _frame(
    place: Path, values: Mapping[str, Any], tokenizer: StoredTokenizer
) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """Tokens that transformers puts in front of and behind a text; None for a tokenizer that it does not have."""
    if not tokenizer.files:
        return None, ()
    path = place / _SETTINGS
    settings = read_json(path, "repair it or remove it") if path.is_file() else {}
    special = tokenizer.special
    if tokenizer.kind == "wordpiece":
        # BERT's tokenizer, whatever the model.
        return tuple(special[role] for role in ("cls",) if role in special), (special.get("sep", special["eos"]),)
    if "tokenizer.json" in tokenizer.files and (place / "tokenizer.json").is_file():
        begin, end = template_of(_library(tokenizer))
        # Earlier versions of transformers put the begin token there by this flag, whatever the template. An end token
        # would close a prompt that is to be continued: only a template is believed to want that.
        adds_bos, adds_eos = settings.get("add_bos_token") is True, False
    else:
        name = tokenizer_class(settings, values)
        begin, end = (), ((special["eos"],) if name == "T5Tokenizer" else ())
        adds_bos = _flag(settings, "add_bos_token", name in _BEGINNING)
        adds_eos = _flag(settings, "add_eos_token", False)
    if adds_bos and "bos" in special and begin[:1] != (special["bos"],):
        begin = (special["bos"], *begin)
    if adds_eos and end[-1:] != (special["eos"],):
        end = (*end, special["eos"])
    return begin, end


def _around_texts(
    place: Path, values: Mapping[str, Any], tokenizer: StoredTokenizer
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """Tokens that transformers puts in front of a text, between two, and behind the last; None for a tokenizer that it
    does not have."""
    special = tokenizer.special
    given = "tokenizer.json" in tokenizer.files and (place / "tokenizer.json").is_file()
    template = template_of(_library(tokenizer)) if given else ((), ())
    if {"cls", "sep"} <= special.keys() and not any(template):
        last = (special["sep"],)
        return (special["cls"],), _between(place, values, tokenizer) or last, last
    begin, end = _frame(place, values, tokenizer)
    if begin is None:
        return None
    return begin, between_texts(_library(tokenizer)) if template == (begin, end) and given else (*end, *begin), end


def _between(place: Path, values: Mapping[str, Any], tokenizer: StoredTokenizer) -> tuple[int, ...]:
    """Tokens that transformers puts between two texts, where they are others than stand behind a text."""
    if tokenizer.kind == "huggingface" and (place / "tokenizer.json").is_file():
        backend = _library(tokenizer)
        found, end = between_texts(backend), template_of(backend)[1]
        return () if found == end else found
    path = place / _SETTINGS
    settings = read_json(path, "repair it or remove it") if path.is_file() else {}
    name = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    roberta = name == "RobertaTokenizer" or (not name and values.get("model_type") == "roberta")
    sep = tokenizer.special.get("sep")
    return (sep, sep) if roberta and tokenizer.kind != "wordpiece" and sep is not None else ()


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key)
    return value if isinstance(value, bool) else default


def _library(tokenizer: StoredTokenizer) -> tokenizers.Tokenizer:
    import tokenizers

    return tokenizers.Tokenizer.from_str(tokenizer.files["tokenizer.json"].decode())


def template_of(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the library's post-processor puts in front of and behind a text."""
    backend.no_truncation()
    backend.no_padding()
    # No text of its own spells a special token, so that the mask is of what was put there.
    encoding = backend.encode("a", add_special_tokens=True)
    text = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    if not text:
        return (), ()
    return tuple(encoding.ids[: text[0]]), tuple(encoding.ids[text[-1] + 1 :])


def between_texts(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The tokens that the library's post-processor puts between two texts."""
    backend.no_truncation()
    backend.no_padding()
    encoding = backend.encode("a", "a", add_special_tokens=True)
    text = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    inner = [place for place in range(text[0], text[-1]) if encoding.special_tokens_mask[place]] if text else []
    return tuple(encoding.ids[place] for place in inner)


def with_template(
    backend: tokenizers.Tokenizer,
    tokenizer: StoredTokenizer,
    begin: list[int],
    end: list[int],
    between: list[int] | None = None,
) -> tokenizers.Tokenizer:
    """The library's tokenizer such that it puts these tokens in front of a text and behind it; of two, `between` alone
    stands between them, where it is given."""
    import tokenizers

    same = between is None or between_texts(backend) == tuple(between)
    if same and template_of(backend) == (tuple(begin), tuple(end)):
        return backend
    state = json.loads(backend.to_str())
    state["post_processor"] = _template(state["post_processor"], tokenizer, begin, end, between)
    return tokenizers.Tokenizer.from_str(json.dumps(state))


def _template(
    present: dict[str, Any] | None,
    tokenizer: StoredTokenizer,
    begin: list[int],
    end: list[int],
    between: list[int] | None,
) -> dict[str, Any] | None:
    """A post-processor of a tokenizer.json; `present` is the one that there was, of which offsets of bytes stay."""
    steps: list[dict[str, Any] | None] = (present or {}).get("processors") or [present]
    kept = [step for step in steps if step is not None and step.get("type") == "ByteLevel"]

    def piece(token: int, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": tokenizer.token_text(token), "type_id": kind}}

    def framed(name: str, kind: int, before: Sequence[int], behind: Sequence[int]) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": kind}}
        return [*(piece(token, kind) for token in before), text, *(piece(token, kind) for token in behind)]

    if begin or end:
        texts = {tokenizer.token_text(token): token for token in (*begin, *end, *(between or ()))}
        first, second = (end, begin) if between is None else (between, ())
        kept.append(
            {
                "type": "TemplateProcessing",
                "single": framed("A", 0, begin, end),
                "pair": [*framed("A", 0, begin, first), *framed("B", 1, second, end)],
                "special_tokens": {
                    text: {"id": text, "ids": [token], "tokens": [text]} for text, token in texts.items()
                },
            }
        )
    if len(kept) > 1:
        return {"type": "Sequence", "processors": kept}
    return kept[0] if kept else None


def written_flags(tokenizer: StoredTokenizer) -> dict[str, bool]:
    """What older readers of tokenizer_config.json ask for: whether the begin and the end token stand around a text."""
    kept, special = tokenizer.conventions, tokenizer.special
    if kept is None or kept.begin is None or kept.start is not None or kept.begin not in ((), (special.get("bos"),)):
        return {}
    return {"add_bos_token": bool(kept.begin), "add_eos_token": kept.end == (special["eos"],)}
