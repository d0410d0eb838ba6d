"""What a task file says, whatever its kind; each kind adds its own settings in a file of `kinds`."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.base.encodings import normal_name
from data_pipeline.base.section import Section
from data_pipeline.reading.item import Item
from llmscale.evaluate.tasks.templates import Template, Text, reads, requires

SUBSET = "subset"
"""What templates call the subset of the data set that a record is from, or the name of its file without ending."""


class TaskData(Section):
    """Where the records are: a data set of the Hugging Face hub, or files. Files that are given on the command line or
    found below the data root come first; the rest says how such files are written, too."""

    hub: str | None = None
    """The data set's name on the hub, such as `allenai/ai2_arc`."""
    home: str | None = None
    """Where the data can be had, for a data set that is not on the hub; its files are given on the command line."""
    subset: str | list[str] | None = None
    """Its configuration; or several, which are read one after the other."""
    split: str = "test"
    """The split to evaluate on."""
    split_files: dict[str, str] = {}
    """What files call a split, where that is not its name on the hub, such as `{test: test_2016_flickr}`."""
    revision: str | None = None
    """A commit, branch or tag of the hub."""
    files: list[str] = []
    """Files or patterns, relative to the folder of the task file."""
    parallel: dict[str, str] = {}
    """Text files that belong together line by line, by the name of the field that each becomes, such as `{de: test.de,
    en: test.en}`; relative likewise, or to the folder that is given. `{split}` in a name stands for the split."""
    format: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text"] | None = None
    """How files are written whose name does not say it: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`,
    `.arrow` or `.feather`. json: one value. text: the field is `text`."""
    records: str = ""
    """For json: the lists on the way to the records, such as `data.paragraphs.qas`; a record has the fields of what it
    lies in, too. Empty where the file is a list of records."""
    columns: list[str] = []
    """For csv and tsv: the columns' names, for files without a header row."""
    quote: str | None = Field(default=None, max_length=1)
    """For csv and tsv: the character around fields; `"` for csv and none for tsv where not given."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """For csv and tsv: the character between fields."""
    encoding: str | None = None
    """Of text, csv and tsv; UTF-8 where not given."""
    document: Literal["file", "line"] = "file"
    """For text: what one record is."""
    begins: str | None = None
    """For text: a regular expression; a record begins at each line that it matches the beginning of."""
    fields: list[str] = []
    """The fields of a record that templates may name. Where there are none, that is known from the data only."""

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        return None if encoding is None else normal_name(encoding)

    @field_validator("begins")
    @classmethod
    def _valid_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression ({error}); repair it") from None
        return pattern

    @model_validator(mode="after")
    def _one_home(self) -> TaskData:
        if not (self.hub or self.files or self.parallel or self.home):
            raise ValueError("it names no data; give one of hub, files, parallel and home")
        if self.files and self.parallel:
            raise ValueError("files and parallel are both given; name one of them")
        if self.subset is not None and not self.hub:
            raise ValueError(f"subset is {self.subset!r}, but hub is not given; name the data set too")
        return self

    @property
    def subsets(self) -> list[str | None]:
        """The subsets to read; None for a data set without."""
        return list(self.subset) if isinstance(self.subset, list) else [self.subset]


class FewShot(Section):
    """Examples before each item."""

    count: int = Field(default=0, ge=0, le=1000)
    """How many, where the command line does not say."""
    separator: str = "\n\n"
    """What stands behind each."""
    split: str | None = None
    """The split of the data set that they are from; the task's own where not given."""
    files: list[str] = []
    """Or the files, as of `data`."""
    fixed: bool = False
    """The first ones, the same before all items; else drawn for each item, by seed. Either way an item is never
    shown itself, nor another of its cluster."""
    within_group: bool = False
    """They are of the item's own group, as the five of a subject are."""


@dataclass(frozen=True)
class Question:
    """What a kind makes of a record: an item without examples. Its fields are those of `Item`."""

    contexts: tuple[str, ...] = ("",)
    answers: tuple[str, ...] = ()
    neutral: str | None = None
    gold: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    scored_bytes: int | None = None
    scored_words: int | None = None
    shown: str | None = None
    """Context and right answer, as few-shot examples are shown; None where the kind has none."""
    note: str | None = None
    """What is counted, and told of the task: "have two equal answers"."""


class Mistake(ValueError):
    """A record that makes no item; the message says why, and the fix."""


class TaskSettings(Section):
    """A task file."""

    DEFAULT_METRICS: ClassVar[tuple[str, ...]] = ()
    """Of the kind."""
    SHOWS_EXAMPLES: ClassVar[bool] = True
    """Whether items of the kind can have examples before them."""
    WRITTEN: ClassVar[bool] = False
    """Whether the model writes its answers."""

    name: str = Field(default="", pattern=r"^[\w.\-]*$")
    """What it is called; the file's name where not given."""
    description: str = ""
    """One line about it."""
    language: str = "en"
    """Of the texts, as ISO 639 has it; two for a translation, such as `de-en`."""
    data: TaskData
    """Where the records are."""
    let: dict[str, Text] = {}
    """Values for the templates below, made of fields and of those above them."""
    preamble: Text = ""
    """What every context begins with, before the examples."""
    few_shot: FewShot = FewShot()
    """Examples before each item."""
    metrics: list[str] = []
    """What it is measured by, the main one first; those of the kind where not given."""
    cluster: Text | None = None
    """What items have in common that are not independent of each other, such as a passage."""
    group: Text | None = None
    """What items are averaged by, such as a subject."""
    overflow: Literal["refuse", "window", "truncate-left"] = "refuse"
    """What is done about items that are longer than the model's context; all but refuse is counted in the result.
    window: earlier tokens are left out of sight where later ones are scored. truncate-left: the context loses its
    beginning."""

    @field_validator("let")
    @classmethod
    def _names_of_values(cls, let: dict[str, str]) -> dict[str, str]:
        for name in let:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in ("range", SUBSET):
                raise ValueError(f"{name!r} is no name for a value; use letters, digits and underscores")
        return let

    @field_validator("metrics")
    @classmethod
    def _metrics_once(cls, metrics: list[str]) -> list[str]:
        return require_once(metrics)

    @model_validator(mode="after")
    def _fields_that_are_stated(self) -> TaskSettings:
        if self.few_shot.count and not self.SHOWS_EXAMPLES:
            raise ValueError(f"few_shot.count is {self.few_shot.count}, but this kind has no examples; leave it out")
        known = {*self.data.fields, SUBSET}
        for template in self.all_templates():
            for name in sorted(reads(template.source) - known) if self.data.fields else ():
                raise ValueError(
                    f"{template.name} names {name!r}, but data.fields are {', '.join(self.data.fields)}; name one of"
                    f" them, or add it to data.fields"
                )
            known.add(template.name.removeprefix("let."))
        return self

    @abstractmethod
    def templates(self) -> list[Template]:
        """The templates of the kind."""

    @abstractmethod
    def question(self, values: Mapping[str, Any]) -> Question:
        """What a record is asked as.

        Args:
            values: of the templates by name.

        Raises:
            Mistake: it makes no item.
        """

    def together(self, items: list[Item]) -> list[Item]:
        """Items with what depends on all that are asked."""
        return items

    def all_templates(self) -> list[Template]:
        """All templates of the file, in the order in which they are evaluated."""
        let = [Template(f"let.{name}", source, True) for name, source in self.let.items()]
        common = {"preamble": self.preamble, "cluster": self.cluster, "group": self.group}
        rest = [Template(name, source) for name, source in common.items() if source]
        return [*let, *self.templates(), *rest]

    @property
    def read_fields(self) -> list[str]:
        """The fields of a record that the templates name, sorted."""
        return sorted({name for each in self.all_templates() for name in reads(each.source)} - {*self.let, SUBSET})

    @property
    def required_fields(self) -> list[str]:
        """Those without which some template has no value."""
        return sorted({name for each in self.all_templates() for name in requires(each.source)} - {*self.let, SUBSET})


def require_once(names: list[str]) -> list[str]:
    """Names as they are.

    Raises:
        ValueError: one is there twice.
    """
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is there {names.count(twice[0])} times; name it once")
    return names


def text_of(values: Mapping[str, Any], name: str) -> str:
    """The value of a template as a text.

    Raises:
        Mistake: it is null, a list or an object.
    """
    value = values[name]
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, list | dict):
        what = "null" if value is None else "a list" if isinstance(value, list) else "an object"
        raise Mistake(f"{name} is {what}, but a text is needed; correct the template")
    return str(value)


def texts_of(values: Mapping[str, Any], name: str) -> list[str]:
    """The value of a template as a list of texts; one text is a list of one.

    Raises:
        Mistake: it is null or an object, or one of the list is no text.
    """
    value = values[name]
    if not isinstance(value, list):
        return [text_of(values, name)]
    return [text_of({f"{name}.{place}": each}, f"{name}.{place}") for place, each in enumerate(value)]
