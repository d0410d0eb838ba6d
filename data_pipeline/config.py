"""Settings of the data pipeline: sources, tokenizer and stream."""

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.base.encodings import normal_name
from data_pipeline.base.section import Section
from data_pipeline.cleaning.config import CleaningStep, DeduplicationConfig
from data_pipeline.kinds import KindName, SourceKind, description, source_kind
from data_pipeline.layouts import layout_of
from data_pipeline.tokenizer_kinds import TOKENIZER_KINDS, TokenizerKind


class SourceConfig(Section):
    """Where documents come from."""

    kind: KindName = Field(default="text", description=description())
    paths: list[str] = []
    """Files or glob patterns (`**` crosses folders), relative to the working directory, or URLs that fsspec opens such
    as `s3://bucket/*.jsonl`. As in a shell, patterns leave out names that begin with a dot; the name of a file or
    folder that is there stands for itself, whatever characters it has. `{python_stdlib}` stands for the folder of this
    Python installation's standard library."""
    exclude: list[str] = []
    """Path components to leave out: a file is skipped when any folder or file name on its path below the pattern's
    fixed part matches one of these patterns (such as `__pycache__` or `*.min.js`)."""
    document: Literal["file", "line"] = "file"
    """What one document is, for kind text without a `delimiter`."""
    delimiter: str | None = Field(default=None, min_length=1)
    """For kind text: what stands between documents, such as `<|endoftext|>`; everything else belongs to them. For csv
    and tsv: the one character between fields, such as `;`; a comma and a tab where not given."""
    encoding: str | None = None
    """For kinds text, jsonl, csv, tsv and conll: the encoding of the files, by a name that Python knows, such as
    `gb18030` (GBK), `big5`, `cp1252` or `utf-16`. UTF-8 where not given; then a file that is in something else is
    refused. With `utf-8` written down it is read all the same, and invalid bytes are replaced by U+FFFD. Files in
    UTF-16, UTF-32 or an encoding with states are not cut into spans, just as compressed ones are not."""
    quote: str = Field(default='"', max_length=1)
    """For csv and tsv: the character around fields that hold separators or newlines; within them, two of it stand for
    one. Empty, and so for tsv where it is not given: quotes are ordinary characters, and every newline ends a row."""
    escape: str | None = Field(default=None, min_length=1, max_length=1)
    """For csv and tsv: the character that takes the special meaning from the one behind it, such as a backslash, within
    quotes and without; it is not part of the text itself. By default there is none."""
    field: str = "text"
    """The field that holds the text, for all kinds but text; or a template such as `"{title}\\n{body}"` that is filled
    from several fields."""
    target_field: str | None = None
    """The field, or a template, that holds the target text of a pair (objective seq2seq), for all kinds but text."""
    target_paths: list[str] = []
    """For kind text with `document: line`, and objective seq2seq: the files whose lines are the targets of those of
    `paths`, file by file in the same order, such as `train.en` of `train.de`."""
    columns: list[str] = []
    """For csv and tsv: the names of the columns of files that have no header row."""
    layout: str | None = None
    """A common form of records, in place of `field` and `target_field`: messages (OpenAI), sharegpt or alpaca for
    objective chat (alpaca for seq2seq, too); auto: that of them which each record has; glue and glue_pairs for
    classification. For all kinds but text. `fields` then says which field of the records is which of the layout's."""
    join: str | None = None
    """What stands between the words of a field that holds a list of them: a space, or nothing (`""`) in Chinese. A
    space for kind conll, and no lists are read, where not given."""
    records: str = ""
    """For kind json: the lists on the way to the records, such as `data.paragraphs.qas` for SQuAD; a record has the
    fields of what it lies in, too. Empty where the file is a list of records."""
    fields: dict[str, str] = {}
    """Other fields that the objective asks for, for all kinds but text: the name of each in the records by what the
    objective calls it, such as `{label: sentiment}`. They hold any value, not texts alone."""
    defaults: dict[str, str] = {}
    """The text of a field that a record lacks or has as null, by the field's name, such as `{input: ""}`. A record
    without a field that has no default is a bad one. Records that a default was used for are counted."""
    name: str | None = None
    """For kind datasets: a hub name, or a builder such as `json` or `text` together with `paths`."""
    subset: str | None = None
    """For kind datasets: the configuration of the data set, where it has several."""
    split: str = "train"
    """For kind datasets: the split to read."""
    label: str | None = None
    """What reports and `data.mixture` call the source; its number in the list when not given."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the samples that comes from this source, relative to the weights of the others. Give one to all
    sources (a weight or `epochs`), or to none: then they are read as one, in proportion to their size."""
    epochs: float | None = Field(default=None, gt=0, le=1e9)
    """Instead of `weight`: how often this source is read for each time that a source with `epochs: 1` is read once;
    its share is proportional to its bytes times this."""

    @property
    def about(self) -> SourceKind:
        """What its kind declares."""
        return source_kind(self.kind)

    @property
    def whole_files(self) -> bool:
        """Whether each file is one document."""
        return self.about.is_plain and self.document == "file" and self.delimiter is None

    @property
    def gives(self) -> frozenset[str]:
        """What of a record there is besides its text, by what objectives call it."""
        if self.layout is not None:
            return layout_of(self.layout).gives
        target = {"target"} if self.target_field is not None or self.target_paths else set()
        return frozenset(self.fields) | target

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, layout: str | None) -> str | None:
        return None if layout is None else layout_of(layout).name

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        return None if encoding is None else normal_name(encoding)

    @model_validator(mode="after")
    def _fields_that_can_be_told_apart(self) -> "SourceConfig":
        for name, value in self.about.defaults.items():
            if name not in self.model_fields_set:
                # Not by way of the input, so that it stays known that nobody asked for it.
                self.__dict__[name] = value
        self._require_its_kind()
        if self.about.delimiter is None:
            if self.escape is not None:
                raise ValueError(f"escape is {self.escape!r}, but kind {self.kind} has no escapes; leave it out")
            return self
        if self.delimiter is not None and len(self.delimiter) > 1:
            raise ValueError(f"delimiter is {self.delimiter!r}, but kind {self.kind} needs one character; give one")
        special = {"delimiter": self.delimiter or self.about.delimiter, "quote": self.quote, "escape": self.escape}
        names: dict[str, str] = {}
        for name, character in special.items():
            if not character:
                continue
            if character in "\r\n\0":
                raise ValueError(f"{name} is {character!r}, which ends a row; give another character")
            if character in names:
                raise ValueError(f"{names[character]} and {name} are both {character!r}; give two characters")
            names[character] = name
        return self

    def _require_its_kind(self) -> None:
        lines = self.about.is_plain and self.document == "line" and self.delimiter is None
        if self.target_paths and not lines:
            raise ValueError(
                f"target_paths is {self.target_paths}, but files of kind {self.kind} are not read line by line; set"
                f" kind=text and document=line"
            )
        if self.columns and self.about.delimiter is None:
            raise ValueError(f"columns is {self.columns}, but kind {self.kind} has none; leave it out")
        if self.layout is None:
            return
        if not self.about.has_fields:
            raise ValueError(f"layout is {self.layout}, but kind {self.kind} has no fields; use jsonl or csv")
        unused = "field" if self.field != "text" else "target_field" if self.target_field is not None else None
        if unused is not None:
            raise ValueError(f"layout is {self.layout}, which says where texts are; leave {unused} out")


ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask", "fim_prefix", "fim_middle", "fim_suffix")
"""Roles of special tokens, besides sentinel_0, sentinel_1 and so on."""


class TokenizerTraining(Section):
    """How to train a SentencePiece tokenizer from the training sources."""

    model: Literal["bpe", "unigram"] = "bpe"
    """The SentencePiece algorithm."""
    vocab_size: int = Field(default=8192, ge=300)
    """Number of pieces, special tokens and the 256 byte pieces included."""
    character_coverage: float = Field(default=1.0, ge=0.98, le=1)
    """Fraction of the text whose characters get a piece of their own, 0.98 at least, as SentencePiece has it; the rest
    falls back to bytes. 0.9995 suits Chinese."""
    max_bytes: int = Field(default=5_000_000, gt=0)
    """Training text, in bytes: an even sample over the training documents up to this size."""


class TokenizerConfig(Section):
    """Which tokenizer the run uses. The run keeps its own copy in its directory."""

    kind: Literal["sentencepiece", "huggingface", "gpt2", "wordpiece", "bytes"] = "sentencepiece"
    """sentencepiece: a SentencePiece model, given or trained; huggingface: a `tokenizer.json` of the `tokenizers`
    library; gpt2: byte-level BPE from `vocab.json` and `merges.txt`; wordpiece: BERT's `vocab.txt`; bytes: one token
    per UTF-8 byte."""
    path: str | None = None
    """The tokenizer's file: a `.model`, `tokenizer.json`, `vocab.json` (or `encoder.json`) or `vocab.txt`, by kind.
    A SentencePiece model is trained as `train` says where this is not given."""
    merges: str | None = None
    """For kind gpt2: the file with the merges; `merges.txt` or `vocab.bpe` beside `path` where not given."""
    lower_case: bool = True
    """For kind wordpiece: lower-case the text and strip its accents, as uncased BERT does."""
    special: dict[str, str] = {}
    """Which token has which role, such as `{eos: "<|endoftext|>"}`, where that is not told by the files or by a name
    that is in common use. Roles: bos eos pad unk cls sep mask fim_prefix fim_middle fim_suffix sentinel_0 and so on.
    eos separates documents and must exist."""
    chat_template: str | None = None
    """The file of a chat template (jinja) to use in place of the tokenizer's own."""
    train: TokenizerTraining = TokenizerTraining()
    """How to train the tokenizer when no `path` is given."""

    @property
    def about(self) -> TokenizerKind:
        """What its kind declares."""
        return TOKENIZER_KINDS[self.kind]

    @field_validator("special")
    @classmethod
    def _known_roles(cls, special: dict[str, str]) -> dict[str, str]:
        for role in special:
            if role not in ROLES and not re.fullmatch(r"sentinel_(0|[1-9]\d*)", role):
                raise ValueError(f"{role!r} is no role; use one of {', '.join(ROLES)}, sentinel_0, sentinel_1 ...")
        return special

    @model_validator(mode="after")
    def _path_as_the_kind_needs(self) -> "TokenizerConfig":
        if self.path is None and self.about.files and not self.about.trained:
            trained = " and ".join(name for name, kind in TOKENIZER_KINDS.items() if kind.trained)
            raise ValueError(f"kind {self.kind} needs a path, since only {trained} can be trained; name the file")
        if self.path is not None and not self.about.files:
            raise ValueError(f"kind {self.kind} has no file, but path is {self.path}; leave path out or name its kind")
        return self


class MixtureStage(Section):
    """Shares that hold from some point of the training on."""

    from_tokens: int = Field(gt=0)
    """Target tokens of the whole run after which this stage begins; rounded down to whole samples."""
    weights: dict[str, float]
    """Weight of each source by its label; a source that is left out gives no samples."""


class MixtureConfig(Section):
    """How several sources share the samples."""

    temperature: float = Field(default=1.0, gt=0)
    """Shares are made proportional to (bytes x epochs)^(1 / temperature), or weight^(1 / temperature): above 1, small
    sources count for more (Raffel et al. 2020, section 3.5.2)."""
    stages: list[MixtureStage] = []
    """Later shares, by increasing `from_tokens`."""


class DataConfig(Section):
    """What the model reads, and in which order."""

    renamed_values: ClassVar[dict[str, dict[str, str]]] = {"order": {"permutation": "finite"}}
    sources: list[SourceConfig] = Field(min_length=1)
    """Training documents; all sources are read in proportion to their size in bytes."""
    evaluation: list[SourceConfig] = []
    """Documents to evaluate on, besides those that `holdout` sets aside."""
    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the training documents to set aside for evaluation: whole files by a hash of their path (kinds text
    with one document a file), else single documents by a hash of file and position."""
    order: Literal["stream", "finite"] = "stream"
    """stream: documents are tokenised while they are read, and lanes are shuffled a block at a time. finite: all
    documents are tokenised first, into a cache of the run, and every epoch is a random order of all samples, each
    exactly once; for fine-tuning and other small data. Sources of kind tokens are always read so."""
    mixture: MixtureConfig = MixtureConfig()
    """How sources with a `weight` or `epochs` share the samples."""
    cleaning: list[CleaningStep] = []
    """Steps that every document goes through, in this order, training and evaluation documents alike."""
    deduplication: DeduplicationConfig | None = None
    """Which documents to leave out because they repeat earlier ones; done by `llmscale data prepare` only, since it
    needs the whole corpus."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer."""
    sequence_length: int = Field(default=1024, gt=0)
    """Target tokens per sample."""
    lanes: int = Field(default=960, gt=0)
    """Independent streams that the documents are dealt to. Every data-parallel size that divides it reads the same
    samples in the same order. Text that is too little for them is read as a finite set."""
    span_bytes: int = Field(default=1 << 20, gt=0)
    """Most bytes of a line-oriented file that are dealt to a lane at a time; a small source is cut finer, into about
    four parts a lane. Row groups, record batches, compressed files and whole-file documents are not split."""
    max_document_bytes: int = Field(default=1 << 26, gt=0)
    """A record that is longer is a bad one."""
    on_bad_record: Literal["skip", "fail"] = "skip"
    """What to do about a record that cannot be used as it is (malformed, too long, without the field): skip counts it
    and notes its place, and replaces invalid UTF-8 and lone surrogates by U+FFFD; fail stops with its path and line.
    Empty records are never bad ones, and a file that cannot be read at all always stops the run."""
    bad_record_warning: float = Field(default=0.01, ge=0, le=1)
    """Fraction of bad records above which the run warns."""
    shuffle_buffer: int = Field(default=4096, ge=0, le=1 << 30)
    """Samples held for shuffling, over all lanes together."""
    workers: int = Field(default=2, ge=0, le=1024)
    """Loader processes per rank; the largest number not above this that divides the rank's lanes is used.
    Changes nothing but speed."""
    prefetch: int = Field(default=4, gt=0)
    """Steps' worth of samples that the loader prepares ahead."""

    @property
    def finite(self) -> bool:
        """Whether samples are a finite set, so that there is an end to an epoch."""
        return self.order == "finite" or any(source.about.is_tokenised for source in self.sources)
