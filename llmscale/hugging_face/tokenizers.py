"""Tokenizers of Hugging Face directories, read into ours and written from ours."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.objectives.contrastive import NAME as CONTRASTIVE
from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.base import META_FILE, StoredTokenizer
from data_pipeline.tokenizer.bytes_tokenizer import FIRST
from data_pipeline.tokenizer.frame import PairFrame, text_frame, whole_frame
from data_pipeline.tokenizer.recognition import what_it_is
from data_pipeline.tokenizer.roles import role_text
from data_pipeline.tokenizer.store import open_tokenizer
from data_pipeline.tokenizer_kinds import TOKENIZER_KINDS
from llmscale.config import ModelConfig
from llmscale.hugging_face.added_tokens import add_tokens, cut_as, read_added
from llmscale.hugging_face.classes import tokenizer_class
from llmscale.hugging_face.conventions import template_of, with_template, written_flags
from llmscale.hugging_face.files import read_json
from llmscale.hugging_face.sentencepiece_model import SPACE, as_library_tokenizer, user_symbols

if TYPE_CHECKING:
    import tokenizers

OWN_FOLDER = "tokenizer"
"""Where a model that transformers has no class for keeps our own tokenizer's files."""
NAMED_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Roles that transformers has a name for."""
_KINDS = (
    ("huggingface", ("tokenizer.json",)),
    ("gpt2", ("vocab.json", "merges.txt")),
    ("wordpiece", ("vocab.txt",)),
    ("sentencepiece", ("spiece.model",)),
    ("sentencepiece", ("tokenizer.model",)),
)
"""Kinds by the files that a directory has of one; the first that is complete counts."""
_OPTIONS = {"lower_case": ("do_lower_case", True)}
"""What tokenizer_config.json calls our options, and what holds where it does not have them."""
_SETTINGS = "tokenizer_config.json"
_OF_CLASS = {name: {"cls": "<s>", "sep": "</s>"} for name in ("RobertaTokenizer", "XLMRobertaTokenizer")}
"""Special tokens by role of transformers' classes that use others for them than those of that name, where no file says
it: those of the first models, whose settings name none."""
_PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " Two  spaces, a tab\tand\nnew lines\n\n    def main(argument: int = 10) -> None:\n",
    "It's 3.14, isn't it? We'll see: e-mail@example.org, 100,000 £ – déjà vu, naïve café… “quoted” 😀",
    "你好，世界。今天天气很好，我们去公园吧！盘古大模型是中文预训练语言模型。",
    "吾輩は猫である。한국어 텍스트 Привет, мир! العربية",
)
"""Texts that a written tokenizer must split as ours does."""


@dataclass(frozen=True)
class Imported:
    """A tokenizer that was read."""

    tokenizer: StoredTokenizer
    settings: dict[str, Any]
    """`data.tokenizer` for a run that uses it."""
    notes: list[str]


def import_tokenizer(
    folder: Path, values: Mapping[str, Any], destination: Path, final: Path, other: Path | None
) -> Imported:
    """Read the tokenizer of a Hugging Face directory and keep our copy in the new folder `destination`.

    Args:
        values: its config.json.
        final: what `destination` will be called.
        other: the folder of the files, or `bytes`, in place of `folder`.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if (folder / OWN_FOLDER / META_FILE).is_file() and other is None:
        return _import_own(folder / OWN_FOLDER, destination, final)
    place = other or folder
    settings = _settings_of(place)
    made = open_tokenizer(TokenizerConfig(**settings))
    with tempfile.TemporaryDirectory() as folder_of_json:
        contents, notes = _with_added(place, values, made)
        if contents is not None:
            path = Path(folder_of_json) / "tokenizer.json"
            path.write_text(contents, encoding="utf-8")
            settings = {"kind": "huggingface", "path": str(path)}
            made = open_tokenizer(TokenizerConfig(**settings))
        settings["special"] = _special(place, values, made)
        appended = _appended(place, values, made)
        config = DataConfig(sources=[{"paths": ["-"]}], tokenizer=settings)  # type: ignore[list-item, arg-type]
        tokenizer = prepare_tokenizer(config, destination, roles=appended)
    assert isinstance(tokenizer, StoredTokenizer)
    return Imported(tokenizer, _kept_settings(tokenizer, final), [*made.notes, *notes])


def _import_own(folder: Path, destination: Path, final: Path) -> Imported:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, StoredTokenizer)
    destination.mkdir()
    tokenizer.save(destination)
    return Imported(tokenizer, _kept_settings(tokenizer, final), tokenizer.notes)


def _kept_settings(tokenizer: StoredTokenizer, final: Path) -> dict[str, Any]:
    """`data.tokenizer` for a run that uses the copy in `final`; it gives the same roles and so the same digest."""
    names = {
        role: tokenizer.token_text(token) for role, token in tokenizer.special.items() if role not in tokenizer.appended
    }
    settings: dict[str, Any] = {
        "kind": tokenizer.kind,
        "special": {r: names[r] for r in names if not r.startswith("sentinel")},
    }
    if not tokenizer.files:
        return {"kind": tokenizer.kind}
    first = next(iter(tokenizer.files))
    settings["path"] = str(final / first)
    return settings | tokenizer.options


def _settings_of(place: Path) -> dict[str, Any]:
    """Kind and files of the tokenizer in a folder."""
    kind = str(place)
    if kind in TOKENIZER_KINDS and not TOKENIZER_KINDS[kind].files:
        return {"kind": kind}
    for kind, files in _KINDS:
        if not all((place / file).is_file() for file in files):
            continue
        settings: dict[str, Any] = {"kind": kind, "path": str(place / files[0])}
        for option in TOKENIZER_KINDS[kind].options:
            theirs, default = _OPTIONS[option]
            settings[option] = bool(_named(place / _SETTINGS).get(theirs, default))
        return settings
    for path in (place / "tekken.json", *sorted(place.glob("*.tiktoken"))):
        if path.is_file() and (found := what_it_is(path.read_bytes(), path)) is not None:
            raise UserError(f"{path} {found}")
    names = ", ".join(" with ".join(files) for _, files in _KINDS)
    raise UserError(f"{place} holds no tokenizer ({names}); give its folder by --tokenizer")


def _named(path: Path) -> dict[str, Any]:
    return read_json(path, "repair it or remove it") if path.is_file() else {}


def _with_added(place: Path, values: Mapping[str, Any], made: StoredTokenizer) -> tuple[str | None, list[str]]:
    """A tokenizer.json of vocabulary files with the tokens that the directory adds to them and the class's own rules
    of cutting text, None where the files say all; and sentences on what is left out.

    Raises:
        UserError: no tokenizer.json splits text as the files do, or the tokens do not follow the vocabulary.
    """
    if not made.files:
        return None, []
    backend = _backend(made)
    sentinels = {role_text(role) for role in _appended(place, values, made)}
    listed = read_added(place, backend.get_vocab())
    rows = values.get("vocab_size")
    added = [token for token in listed if not isinstance(rows, int) or token[0] < rows]
    if "tokenizer.json" in made.files and any(number != made.vocab_size + i for i, (number, _, _) in enumerate(added)):
        added = []  # transformers goes by tokenizer.json for ids
    left = ", ".join(repr(text) for _, text, _ in listed[len(added) :])
    notes = [f"{place} lists added tokens for which its model or vocabulary has no place: {left:.200}"] if left else []
    name = tokenizer_class(_named(place / _SETTINGS), values)
    own = "vocab.json" in made.files and cut_as(backend, name)
    if not own and all(text in sentinels for _, text, _ in added):
        return None, notes
    _add_roles(backend, made)
    if not own:
        _require_same(backend, made)
    return str(add_tokens(backend, added, place, plain=made.kind == "sentencepiece").to_str()), notes


def _special(place: Path, values: Mapping[str, Any], made: StoredTokenizer) -> dict[str, str]:
    """Special tokens by role: as the tokenizer's settings name them, else by the ids in config.json."""
    if not made.files:
        return {}
    settings = _named(place / _SETTINGS)
    given = {**_named(place / "special_tokens_map.json"), **settings}
    by_class = _OF_CLASS.get(tokenizer_class(settings, values), {})
    found: dict[str, str] = {}
    for role in NAMED_ROLES:
        text = given.get(f"{role}_token")
        text = text.get("content") if isinstance(text, dict) else text
        text = by_class.get(role) if text is None else text
        number = values.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(text, str) and made.token_id(text) is not None:
            found[role] = text
        elif isinstance(number, int) and 0 <= number < made.vocab_size and not _is_text(made, number):
            found[role] = made.token_text(number)
    return found


def _is_text(made: StoredTokenizer, token: int) -> bool:
    """Whether a token is one that text becomes, or a gap: config.json may hold ids that nobody has set, the defaults of
    its class."""
    added: Mapping[int, Any] = getattr(made, "_added", {})
    if token in added:
        return False
    return not made.token_text(token) or made.encode(made.decode([token])) == [token]


def _appended(place: Path, values: Mapping[str, Any], made: StoredTokenizer) -> list[str]:
    """T5's sentinels, which a SentencePiece model lacks: transformers puts them behind its pieces."""
    if values.get("model_type") != "t5" or made.kind != "sentencepiece" or "sentinel_0" in made.special:
        return []
    return [f"sentinel_{number}" for number in range(int(_named(place / _SETTINGS).get("extra_ids", 100)))]


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Token ids by the roles that transformers has a name for."""
    return {role: token for role, token in tokenizer.special.items() if role in NAMED_ROLES}


def export_tokenizer(
    tokenizer: Tokenizer, folder: Path, model: ModelConfig, *, source: bool = False, around: PairFrame | None = None
) -> None:
    """Write tokenizer.json, its settings, and the vocabulary files that it was made of.

    Args:
        source: a decoder reads a prompt as a text from which another follows.
        around: what stands around texts of which a head predicts; None: the model has none.

    Raises:
        UserError: no tokenizer.json splits text as this tokenizer does.
    """
    assert isinstance(tokenizer, StoredTokenizer)
    backend = _backend(tokenizer)
    _add_roles(backend, tokenizer)
    if model.head is not None and model.head.name == CONTRASTIVE:
        backend = with_template(backend, tokenizer, *whole_frame(tokenizer))
    elif around is not None and (model.architecture != "encoder" or around.begin != [tokenizer.special.get("cls")]):
        backend = with_template(backend, tokenizer, around.begin, around.end, around.between)
    elif model.architecture == "encoder":
        backend.post_processor = _ends(backend, tokenizer)
    else:
        source = source or model.architecture == "encoder_decoder"
        backend = with_template(backend, tokenizer, *text_frame(tokenizer, source=source))
    _require_same(backend, tokenizer)
    for name, contents in tokenizer.files.items():
        (folder / name).write_bytes(contents)
    backend.encode_special_tokens = False
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    names = {f"{role}_token": backend.id_to_token(token) for role, token in token_ids(tokenizer).items()}
    others = [token for role, token in tokenizer.special.items() if role not in NAMED_ROLES]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.max_positions,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", *(["token_type_ids"] if model.token_types > 1 else []), "attention_mask"],
        **names,
        **written_flags(tokenizer),
    }
    if others:
        settings["additional_special_tokens"] = [backend.id_to_token(token) for token in others]
    settings |= {_OPTIONS[option][0]: value for option, value in tokenizer.options.items()}
    write_json(folder / _SETTINGS, settings)


def _backend(tokenizer: StoredTokenizer) -> tokenizers.Tokenizer:
    """The tokenizer for the `tokenizers` library, without what it is given by roles."""
    import tokenizers

    files = tokenizer.files
    if tokenizer.kind == "sentencepiece":
        return as_library_tokenizer(next(iter(files.values())), tokenizer.name, tokenizer.spellings())
    if not files:
        vocabulary = {tokenizer.token_text(token): token for token in range(FIRST + 256)}
        made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
        made.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
        return made
    if "tokenizer.json" in files:
        made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        # Those of a pipeline of transformers: they cut texts, or fill them up.
        made.no_truncation()
        made.no_padding()
        return made
    # Those of vocabulary files are built by the library already.
    return tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())  # type: ignore[attr-defined]


def _add_roles(backend: tokenizers.Tokenizer, tokenizer: StoredTokenizer) -> None:
    from tokenizers import AddedToken

    own = sorted({token for role, token in tokenizer.special.items() if role not in tokenizer.appended})
    texts = [tokenizer.token_text(token) for token in own]
    texts += [role_text(role) for role in tokenizer.appended]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    for role, token in tokenizer.special.items():
        text = role_text(role) if role in tokenizer.appended else tokenizer.token_text(token)
        if backend.token_to_id(text) != token:
            raise UserError(
                f"the {role} token of the tokenizer is {token}, but {text!r} would be {backend.token_to_id(text)} in a"
                f" tokenizer.json; give --no-tokenizer to export without it"
            )


def _ends(backend: tokenizers.Tokenizer, tokenizer: StoredTokenizer) -> tokenizers.processors.PostProcessor | None:
    """What transformers puts around the text of an encoder: what it was imported with, else [CLS] and [SEP], as the
    objective does."""
    from tokenizers.processors import TemplateProcessing

    special = tokenizer.special
    imported = tokenizer.conventions is not None and backend.post_processor is not None
    if imported or not {"cls", "sep"} <= set(special) or template_of(backend) == ((special["cls"],), (special["sep"],)):
        return backend.post_processor
    first, last = (tokenizer.token_text(special[role]) for role in ("cls", "sep"))
    ends = [(first, special["cls"]), (last, special["sep"])]
    return TemplateProcessing(f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1", ends)


def _require_same(backend: tokenizers.Tokenizer, tokenizer: StoredTokenizer) -> None:
    """Refuse a tokenizer.json that splits any of the probes in another way."""
    written = type(backend).from_str(backend.to_str())
    for text in (*_PROBES, *_symbol_probes(tokenizer)):
        ours, theirs = tokenizer.encode(text), written.encode(text, add_special_tokens=False).ids
        # SentencePiece adds a Unigram model's scores in single precision, and so decides by rounding between the same
        # pieces in several orders, which are equally good.
        tie = tokenizer.kind == "sentencepiece" and _is_unigram(written) and sorted(ours) == sorted(theirs)
        if ours != theirs and not tie:
            raise UserError(
                f"a tokenizer.json of this {tokenizer.kind} tokenizer would split {text[:40]!r} into {len(theirs)}"
                f" tokens where it makes {len(ours)} itself; give --no-tokenizer to export without it"
            )


def _symbol_probes(tokenizer: StoredTokenizer) -> list[str]:
    """Texts with the user-defined symbols of a SentencePiece model that have no role: each by itself and together with
    another."""
    if tokenizer.kind != "sentencepiece":
        return []
    special = tokenizer.spellings()
    found = [text for text in user_symbols(next(iter(tokenizer.files.values()))) if text not in special]
    pairs = zip(found, found[1:] + found[:1], strict=True)
    return [f"a{first}b{first}{second}".replace(SPACE, " ") for first, second in pairs]


def _is_unigram(backend: tokenizers.Tokenizer) -> bool:
    from tokenizers.models import Unigram

    return isinstance(backend.model, Unigram)
