"""The text of a record: one field, or a template over several; and the second text of a pair likewise."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from data_pipeline.base.encodings import is_unicode
from data_pipeline.base.errors import UserError, setting
from data_pipeline.base.terminal import tell
from data_pipeline.config import SourceConfig
from data_pipeline.layouts import TARGET, TEXT, layout_of

WIDEST = 1_000_000
"""Most characters that a template may pad a field to, so that no mistyped width fills the memory."""
_KINDS = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}


class TextField:
    """Takes a text out of a record by a field's name, or by a template such as `"{title}\\n{body}"`."""

    def __init__(
        self,
        field: str,
        where: str,
        option: str = "field",
        defaults: Mapping[str, str] | None = None,
        join: str | None = None,
    ) -> None:
        """`where` and `option` name the setting in messages; raises UserError for a template that cannot be parsed.

        `defaults`: what stands for fields that are absent or null, by name; `join`: what stands between the words of
        a field that is a list; None: there are no such fields.
        """
        self.setting = setting(where, option)
        self.defaults = defaults or {}
        self.join = join
        self.template = field if "{" in field else None
        try:
            parts = list(string.Formatter().parse(field)) if self.template else []
        except ValueError as error:
            raise UserError(f"{self.setting}: {field!r} is not a valid template: {error}") from None
        named = [name for _, name, _, _ in parts if name is not None]
        self.names = list(dict.fromkeys(filter(None, named))) if self.template else [field]
        if not self.names:
            raise UserError(f"{self.setting}: {field!r} names no field; write it as '{{title}}' or plain title")
        unfit = [name for name in named if not name or name.isdigit() or set(name) & set(".[")]
        if unfit:
            raise UserError(
                f"{self.setting}: {field!r} is not a valid template: {unfit[0]!r} is no plain field name;"
                f" write it as {{title}}, without number, index or attribute"
            )
        if self.template is not None:
            try:
                _require_narrow(spec for _, _, spec, _ in parts if spec)
                self.template.format(**dict.fromkeys(self.names, "text"))
            except (ValueError, LookupError) as error:
                raise UserError(
                    f"{self.setting}: {field!r} is not a valid template: {error}; write fields as {{title}}"
                ) from None

    def require(self, present: Iterable[str], path: str) -> None:
        """Raise UserError, naming the fields there are, unless every field this needs is among `present`, once. Of
        fields that have a default one is enough."""
        known = list(present)
        for name in self.names:
            if name not in known and (name not in self.defaults or not set(self.names) & set(known)):
                raise UserError(
                    f"{self.setting}: {path} has no field {name!r} but {', '.join(map(repr, known)) or 'none'};"
                    f" set {self.setting} to one of them"
                )
            if known.count(name) > 1:
                raise UserError(
                    f"{self.setting}: {path} has {known.count(name)} fields {name!r}; rename all but one of them, or"
                    f" set {self.setting} to another"
                )

    def text(self, record: Mapping[str, Any]) -> str | None:
        """The record's text; None where a field without default is missing or null, or a field holds no string."""
        if self.template is None:
            text = self._value(record, self.names[0])
            return text if isinstance(text, str) else None
        values = {name: self._value(record, name) for name in self.names}
        if not all(isinstance(value, str) for value in values.values()):
            return None
        return self.template.format(**values)

    def problem(self, record: Any) -> str:
        """Why a record has no text."""
        if not isinstance(record, dict):
            return f"the record is {_kind(record)}, not an object"
        name = next((name for name in self.names if not isinstance(self._value(record, name), str)), self.names[0])
        return f"{name!r} is {_kind(record[name])}, not a string" if name in record else f"it has no {name!r}"

    def _value(self, record: Mapping[str, Any], name: str) -> Any:
        value = record.get(name)
        if self.join is not None and isinstance(value, list) and all(isinstance(word, str) for word in value):
            return self.join.join(value)
        return self.defaults.get(name) if value is None else value


class Fields:
    """The text of a source's records and, for pairs, their second text."""

    def __init__(self, source: SourceConfig, where: str) -> None:
        """Raises UserError for a template that cannot be parsed, or a default of a field that is not used."""
        self.defaults = source.defaults
        self.layout = LayoutFields(source, where) if source.layout is not None else None
        """What makes other records of those in the files; None: they are taken as they are."""
        own = self.layout is not None or bool(source.target_paths)
        field, target = (TEXT, TARGET) if own else (source.field, source.target_field)
        target = target if "target" in source.gives else None
        given = {} if own else self.defaults
        join = source.about.join if source.join is None else source.join
        self.text = TextField(field, where, defaults=given, join=join)
        self.target = TextField(target, where, "target_field", given, join) if target else None
        self.both = [self.text] if self.target is None else [self.text, self.target]
        self.others = dict(source.fields) if self.layout is None else self.layout.others
        """Names in the records of the other fields, by what the objective calls them."""
        texts = [name for field in self.both for name in field.names]
        self.names = list(dict.fromkeys([*texts, *self.others.values()]))
        if self.layout is not None:
            texts = self.names = self.layout.names
        self._others_setting = f"{where}.fields"
        for option, text in (("field", source.field), ("target_field", target or ""), *self.defaults.items()):
            if not is_unicode(text):
                place = f"{where}.defaults.{option}" if option in self.defaults else setting(where, option)
                raise UserError(f"{place} is {text!a}, which has half of a character; write a whole one")
        unused = [name for name in self.defaults if name not in texts]
        if unused:
            raise UserError(
                f"{where}.defaults has {unused[0]!r}, but the fields that are read are"
                f" {', '.join(map(repr, dict.fromkeys(texts)))}; name one of them, or leave it out"
            )

    def require(self, present: Iterable[str], path: str) -> None:
        """Raise UserError, naming the fields there are, unless every field needed is among `present`, once."""
        known = list(present)
        if self.layout is not None:
            self.layout.require(known, path)
            return
        for field in self.both:
            field.require(known, path)
        for called, name in self.others.items():
            if known.count(name) != 1:
                present = f"{known.count(name)} fields {name!r}" if name in known else f"no field {name!r}"
                raise UserError(
                    f"{self._others_setting}.{called}: {path} has {present} among"
                    f" {', '.join(map(repr, dict.fromkeys(known))) or 'none'}; name one that it has once"
                )

    def uses_default(self, record: Mapping[str, Any]) -> bool:
        """Whether a default stands for a field of a record."""
        return any(record.get(name) is None for name in self.defaults)


class LayoutFields:
    """The fields of a layout, as a source's records call them."""

    def __init__(self, source: SourceConfig, where: str) -> None:
        """Raises UserError for fields that the layout does not have."""
        assert source.layout is not None
        self._layout = layout_of(source.layout)
        self._setting = f"{where}.layout"
        unknown = next((name for name in source.fields if name not in self._layout.fields), None)
        if unknown is not None:
            raise UserError(
                f"{where}.fields names {unknown!r}, but layout {source.layout} has {', '.join(self._layout.fields)};"
                f" name one of them"
            )
        self._called = {source.fields.get(name, name): name for name in self._layout.fields}
        self._defaults = source.defaults
        self._told = False
        self.names = list(self._called)
        """Names in the records."""
        self.others = {name: name for name in sorted(self._layout.gives - {TARGET})}

    def require(self, present: list[str], path: str) -> None:
        """Raise UserError, naming the fields there are, where records lack some."""
        known = {self._called[name] for name in (*present, *self._defaults) if name in self._called}
        described = None if self._told else self._layout.described(known)
        if described is not None:
            tell(f"the records of {path} are {described}")
            self._told = True
        lacking = self._layout.lacking(known)
        if lacking is not None:
            raise UserError(
                f"{self._setting}: {path} has no field {lacking} but {', '.join(map(repr, present)) or 'none'}; name"
                f" another layout, or say in fields which is which"
            )
        twice = next((name for name in present if name in self._called and present.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{self._setting}: {path} has {present.count(twice)} fields {twice!r}; rename all but one")

    def convert(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record of a file as the layout makes another of it."""
        whole = {**self._defaults, **{name: value for name, value in record.items() if value is not None}}
        return self._layout.convert(
            {self._called[name]: value for name, value in whole.items() if name in self._called}
        )


def _require_narrow(specs: Iterable[str]) -> None:
    """Raise ValueError for a width above `WIDEST` in format specifications; a precision only cuts."""
    for width in re.findall(r"(?<![.\d])\d+", " ".join(specs)):
        if len(width) > 9 or int(width) > WIDEST:
            raise ValueError(f"a width of {width[:20]} is above {WIDEST}")


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"of type {type(value).__name__}")
