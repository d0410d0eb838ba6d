"""How a family's settings and tensors are written in a Hugging Face directory: the tables' form, without torch.

A family has one `HuggingFace` table for both directions. `read` and `write` of a config are each other's inverse, and
whoever exports a model proves it: a class fits a model if what would be written reads back as the same function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

_Kind = TypeVar("_Kind")
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
PLAIN = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(_TANH, "gelu_tanh"),
    "relu": "relu",
    **dict.fromkeys(("silu", "swish"), "silu"),
}
"""`model.activation` by transformers' name of the function; of several names of one function, `_WRITTEN` has the one
that is written, or else it is the first."""
_GATED = {"gelu": "geglu", "gelu_tanh": "geglu_tanh", "relu": "reglu", "silu": "swiglu"}
GATED = {name: _GATED[activation] for name, activation in PLAIN.items()}
"""As `PLAIN`, for feed-forward layers with a gate."""
_WRITTEN = {"gelu_tanh": "gelu_new", "geglu_tanh": "gelu_pytorch_tanh"}
UNGATED = {gated: plain for plain, gated in _GATED.items()}
"""The function inside a gated `model.activation`."""
MOST_LAYERS = 10_000
"""As in `ModelConfig`, for patterns that are spelled out layer by layer."""
COMMON = (
    "_name_or_path", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "decoder_start_token_id", "tokenizer_class", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "finetuning_task", "prefix", "output_attentions", "output_hidden_states", "output_past",
    "return_dict", "return_dict_in_generate", "output_scores", "torchscript", "gradient_checkpointing", "auto_map",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip
"""Keys of any config.json that do not change what the model computes."""


SUMMARY = (
    "summary_type", "summary_use_proj", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
)  # fmt: skip
"""Keys of a head for multiple choice that the GPTs of the first years have and no checkpoint uses."""
OLD_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
"""Today's names of sizes, by which the classes of the first GPTs know theirs too."""


class Unsupported(ValueError):
    """A config.json says what our model cannot do; one sentence with the option, both values and what to do."""


@dataclass(frozen=True)
class Weight:
    """A row of the weight map: one of their tensors, made of one or several of ours.

    Names are patterns: `{layer}` stands for the number of a layer, `{kind}` for weight and bias, and `{expert}`, in
    theirs only, for the number of an expert, whose matrices are stacked in ours. A row whose tensors our model does
    not have (a bias, a tied head, the experts of a dense layer) is left out.
    """

    ours: tuple[str, ...]
    """Where several, theirs holds them one after the other, along its outputs."""
    theirs: str
    transposed: bool = False
    """Theirs is (inputs, outputs), as transformers' Conv1D."""
    interleaved: bool = False
    """Theirs has the rows of the first key head and of the queries that ask it, then those of the second, and so on
    (GPT-NeoX, Falcon)."""
    only: Callable[[Any], bool] | None = None
    """Whether the row is one of a model with that config; None: of every one."""


@dataclass(frozen=True)
class HeadClass:
    """A class of a family with another head than the language model's: a projection to a few numbers."""

    name: str
    """Of the class, which `AutoModelFor...` opens."""
    projection: str
    """The tensors of the projection, without weight and bias."""
    before: Mapping[str, str] = field(default_factory=dict)
    """Modules in front of it, theirs by our name: `pooler`, a dense layer and tanh; or `dense` and `norm`, the model's
    activation between them."""
    pooling: str = "each"
    """Whose hidden state it sees, as `model.head.pooling` says it; with `pooling_key` where the key is absent."""
    pooling_key: Mapping[str, str] = field(default_factory=dict)
    """`model.head.pooling` by the values of the key `classifier_pooling`, where the class has it."""
    bias: bool = True
    """Whether the projection has one."""
    body: str | None = None
    """What the names of the body's tensors begin with in place of `HuggingFace.prefix`, where that differs."""
    dropout: tuple[str, ...] = ()
    """Keys of the projection's dropout where `classifier_dropout` is null or absent; `rate` without any."""
    rate: float | None = 0.1
    """None: the class drops nothing, whatever config.json says."""
    drops_first: bool = False
    """Whether it also drops values of the hidden state in front of the pooler, which llmscale does not."""
    dropped: tuple[str, ...] = ()
    """Regular expressions of tensors that older versions stored beside it, as `HuggingFace.dropped`."""
    special_tokens: str | None = None
    """`objective.special_tokens` of its models, where that is not what the family's architecture has."""

    @property
    def transform(self) -> bool:
        """Whether it has a dense layer, an activation and a norm in front of the projection."""
        return "dense" in self.before


@dataclass(frozen=True)
class HuggingFace:
    """A family in Hugging Face's layout."""

    model_type: str
    """The key of config.json that names the kind of model."""
    classes: tuple[str, ...]
    """transformers' classes whose directories can be read."""
    fields: tuple[tuple[str, str, Any], ...]
    """(their key, our setting, what their class takes where the key is absent): settings of one value."""
    weights: tuple[Weight, ...]
    read: Callable[[Settings], dict[str, Any]]
    """Our other settings; those of the preset need no mention."""
    write: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Their other keys, from the model section with all sizes and biases resolved."""
    aliases: Mapping[str, str] | None = None
    """Other names of their keys (`attribute_map` of their config class), by each the key. It counts for more."""
    nulls: Mapping[str, Any] | None = None
    """What null stands for in keys of `fields` whose class takes it, where that is not what an absent key stands for.
    Keys without any default of their class may be null as well; in all others null is refused, as transformers does."""
    fixed: Mapping[str, Any] | None = None
    """Keys that must have this value, which is also written."""
    dropout: tuple[str, ...] = ()
    """Their keys of `model.dropout`, which must agree."""
    attention_dropout: tuple[str, ...] = ()
    """Their keys of `model.attention_dropout`."""
    dropout_rate: float = 0.0
    """What their class takes where such a key is absent."""
    other_dropout: tuple[str, ...] = ()
    """Probabilities of dropout in places where our model drops nothing."""
    unused: tuple[str, ...] = ()
    """Keys that belong to other classes of theirs, or do not change what the model computes."""
    prefix: str = ""
    """What the names of a headless class's tensors lack."""
    renames: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement): older names of tensors."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors that are no parameters: masks and tables that older versions stored."""
    dropped: tuple[str, ...] = ()
    """Regular expressions of tensors of parts that our model does not have, which are left out with a note."""
    copies: Mapping[str, str] | None = None
    """Tensors that must equal another, where they are stored at all."""
    present: Mapping[str, str] | None = None
    """Settings (booleans) that are true where a tensor is stored, whatever config.json says of the class."""
    architecture: str = "decoder"
    """`model.architecture` of its models."""
    tokenizer: str = ""
    """transformers' class that reads the tokenizer of directories that name none."""
    token_ids: Mapping[str, str] | None = None
    """Roles of tokens by the keys of config.json that have their ids, besides bos, eos and pad."""
    heads: Mapping[str, HeadClass] = field(default_factory=dict)
    """Classes with another head than the language model's, by the name of the head (`llmscale.model.heads`)."""
    repeats: str | None = None
    """An older family whose class computes the same, which other families' models are exported as."""
    needs: Callable[[Mapping[str, Any]], str | None] | None = None
    """Why their class cannot hold a model that its config can describe, or None."""

    @property
    def headless(self) -> str:
        """Their class without any head, which `AutoModel` opens."""
        return self.classes[-1]


def heads_of_tokens(
    name: str,
    tokens: str | None,
    answers: bool = True,
    body: str | None = None,
    dropout: tuple[str, ...] = (),
    dropped: tuple[str, ...] = (),
) -> dict[str, HeadClass]:
    """The classes `name`ForTokenClassification, whose projection is `tokens`, and `name`ForQuestionAnswering, where
    `answers`, whose body is below `body`."""
    found = {}
    if tokens is not None:
        found["token_classification"] = HeadClass(
            f"{name}ForTokenClassification", tokens, dropout=dropout, dropped=dropped
        )
    if answers:
        found["span"] = HeadClass(f"{name}ForQuestionAnswering", "qa_outputs", body=body, rate=None, dropped=dropped)
    return found


def decoder_heads(name: str, tokens: str | None = None, answers: bool = True, **how: Any) -> dict[str, HeadClass]:
    """The classes of `heads_of_tokens`, and `name`ForSequenceClassification, which sees the last token."""
    last = HeadClass(f"{name}ForSequenceClassification", "score", pooling="last", bias=False, rate=None)
    return {"classification": last, **heads_of_tokens(name, tokens, answers, **how)}


_REFUSED = object()
_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: ("a finite number", lambda value: type(value) in (int, float) and abs(value) < 1e300),
    str: ("a text", lambda value: isinstance(value, str)),
    list: ("a list", lambda value: isinstance(value, list)),
    dict: ("an object", lambda value: isinstance(value, dict)),
}


class Settings:
    """A config.json or an object in it, read key by key, so that nothing in it is passed over."""

    def __init__(self, values: Mapping[str, Any], within: str = "") -> None:
        """`within`: the key of the object, for messages."""
        self.values = dict(values)
        self.notes: list[str] = []
        """Sentences about what is not carried over."""
        self._within = f"{within}." if within else ""
        self._named: dict[str, str] = {}
        self._read: set[str] = set() if within else set(COMMON)

    def take(self, key: str, default: Any = None, kind: type | None = None, null: Any = _REFUSED) -> Any:
        """A key's value; `default` where it is absent.

        Args:
            kind: the type that the value must have; that of `default` when not given.
            null: what null stands for; `default` where that is None, else null is refused: transformers refuses it or,
                in older versions, takes it for zero.

        Raises:
            Unsupported: the value is null or of another kind.
        """
        self._read.add(key)
        if key not in self.values:
            return default
        value = self.values[key]
        if value is None:
            if null is _REFUSED and default is not None:
                raise Unsupported(
                    f"{self.where(key)} is null, but transformers' class needs a value; give one, or remove the key"
                    f" to have {default!r}"
                )
            return default if null is _REFUSED else null
        kind = kind or (type(default) if default is not None else None)
        if kind is not None:
            self._require_kind(key, value, kind)
        return float(value) if kind is float else value

    def given(self, key: str, kind: type) -> Any:
        """A key's value, which must be there.

        Raises:
            Unsupported: it is absent, null or of another kind.
        """
        self._read.add(key)
        if self.values.get(key) is None:
            how = "null" if key in self.values else "missing"
            raise Unsupported(f"{self.where(key)} is {how}, but must be {_KINDS[kind][0]}; give it")
        self._require_kind(key, self.values[key], kind)
        return kind(self.values[key])

    def table(self, key: str) -> Settings:
        """The object under a key; an empty one where it is absent or null."""
        return Settings(self.take(key, {}, dict, null={}), f"{self.where(key)}")

    def names(self, key: str) -> list[str] | None:
        """The texts in the list under a key; None where it is absent or null."""
        found = self.take(key, None, list)
        if found is not None and not all(isinstance(entry, str) for entry in found):
            raise Unsupported(f"{self.where(key)} must be a list of texts, but is {found!r:.60}; repair it")
        return found  # type: ignore[no-any-return]

    def rename(self, aliases: Mapping[str, str]) -> None:
        """Read what stands under another name of a key as the key's value."""
        for alias, key in aliases.items():
            if alias in self.values:
                self.values[key] = self.values.pop(alias)
                self._named[key] = alias

    def layers(self, key: str, default: int) -> int:
        """A number of layers whose kinds are to be spelled out."""
        count = self.take(key, default)
        if not 0 < count <= MOST_LAYERS:
            raise Unsupported(f"{self.where(key)} is {count}, but must be 1 to {MOST_LAYERS}; repair it")
        return count  # type: ignore[no-any-return]

    def require(self, key: str, wanted: Any) -> None:
        """Refuse another value than `wanted`."""
        value = self.take(key, wanted, object, null=wanted)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise Unsupported(
                f"{self.where(key)} is {value!r:.60}, but llmscale has it {wanted!r} only; import a model without it"
            )

    def choose(self, key: str, table: Mapping[str, Any], default: str) -> Any:
        """What a table has for the key's value."""
        value = self.take(key, default)
        if value not in table:
            raise Unsupported(
                f"{self.where(key)} is {value!r:.60}, but llmscale knows {', '.join(table)} there; import another model"
            )
        return table[value]

    def pass_over(self, keys: Iterable[str]) -> None:
        """Keys that change nothing."""
        self._read.update(keys)

    def dropout(self, keys: tuple[str, ...], default: float) -> float:
        """The probability that all these keys have; the first one's, with a note, where they differ."""
        rates = {key: self.take(key, default, float, null=0.0) for key in keys}
        if len(set(rates.values())) > 1:
            told = ", ".join(f"{key} {rate}" for key, rate in rates.items())
            self.notes.append(f"llmscale has one rate for {told}, and takes the first")
        return next(iter(rates.values()), 0.0)

    def no_dropout(self, keys: Iterable[str]) -> None:
        """Note the probabilities that are not 0."""
        for key in keys:
            if self.take(key, 0.0, float, null=0.0):
                self.notes.append(f"{key} is {self.values[key]}, but llmscale drops nothing there")

    def where(self, key: str) -> str:
        """A key as it is found in the file."""
        return f"{self._within}{self._named.get(key, key)}"

    def unread(self) -> list[str]:
        """Keys that nobody has asked for."""
        return [self.where(key) for key in sorted(set(self.values) - self._read)]

    def _require_kind(self, key: str, value: Any, kind: type) -> None:
        words, fits = _KINDS.get(kind, ("", lambda _: True))
        if not fits(value):
            raise Unsupported(f"{self.where(key)} is {value!r:.60}, but must be {words}; repair it")


def read_settings(table: HuggingFace, settings: Settings) -> dict[str, Any]:
    """Our model settings, with `family`, from a config.json.

    Raises:
        Unsupported: an option that our model does not have, or a value that their class does not take.
    """
    if settings.take("quantization_config") is not None:
        raise Unsupported("quantization_config is given, but llmscale reads plain weights only; dequantize them first")
    settings.rename(table.aliases or {})
    found = {}
    for theirs, ours, default in table.fields:
        null = (table.nulls or {}).get(theirs, _REFUSED)
        # What follows from other sizes has no default of its own; it is a size, too.
        found[ours] = settings.take(theirs, default, int if default is None else None, null)
    for key, wanted in (table.fixed or {}).items():
        settings.require(key, wanted)
    for ours, keys in (("dropout", table.dropout), ("attention_dropout", table.attention_dropout)):
        rate = settings.dropout(keys, table.dropout_rate)
        if rate:
            found[ours] = rate
    settings.no_dropout(table.other_dropout)
    settings.pass_over(table.unused)
    found.update(table.read(settings))
    unread = settings.unread()
    if unread:
        settings.notes.append(f"{', '.join(unread)} not used: transformers' {table.model_type} has no such option")
    return {"family": table.model_type, **found}


def write_settings(table: HuggingFace, model: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """A config.json, without the token ids, from the resolved model section."""
    return {
        "model_type": table.model_type,
        "vocab_size": vocab_size,
        **{theirs: model[ours] for theirs, ours, _ in table.fields if ours != "vocab_size"},
        **(table.fixed or {}),
        **dict.fromkeys(table.dropout, model["dropout"]),
        **dict.fromkeys(table.attention_dropout, model["attention_dropout"]),
        **dict.fromkeys(table.other_dropout, 0.0),
        **table.write(model),
    }


def renamed(pairs: Mapping[str, str], ours: str = "", theirs: str = "", **how: Any) -> tuple[Weight, ...]:
    """Rows for modules that correspond one to one, by our name; both kinds of tensor."""
    return tuple(Weight((f"{ours}{a}.{{kind}}",), f"{theirs}{b}.{{kind}}", **how) for a, b in pairs.items())


def qkv(theirs: str, **how: Any) -> Weight:
    """The row of a tensor that holds queries, keys and values."""
    ours = tuple(f"blocks.{{layer}}.attention.{part}.{{kind}}" for part in ("query", "key", "value"))
    return Weight(ours, f"{theirs}.{{kind}}", **how)


def written_activation(activation: str, table: Mapping[str, str], default: str) -> str:
    """transformers' name of our activation; the class's own `default` where the class has no such function, so that
    reading it back shows the difference."""
    names = [theirs for theirs, ours in table.items() if ours == activation]
    return _WRITTEN.get(activation, names[0]) if names else default


def fraction(rotated: int, channels: int) -> float:
    """The `rotary_fraction` whose product with the channels, rounded down, is `rotated`."""
    share = rotated / channels
    return share if int(channels * share) == rotated else math.nextafter(share, 1.0)


def repeated(pattern: Sequence[_Kind]) -> list[_Kind]:
    """The shortest beginning of a pattern that gives all of it when it is repeated."""
    pattern = list(pattern)
    sizes = [size for size in range(1, len(pattern) + 1) if len(pattern) % size == 0]
    return next(pattern[:size] for size in sizes if pattern[:size] * (len(pattern) // size) == pattern)


def layer_kinds(model: Mapping[str, Any]) -> list[str]:
    """The kind of attention of each layer."""
    pattern = model["attention_pattern"]
    return [pattern[layer % len(pattern)] for layer in range(model["layers"])]
