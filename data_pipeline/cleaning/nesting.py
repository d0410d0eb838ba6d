"""HTML with no more elements open at a time than browsers allow, and no more attributes in a tag than anybody writes.

For every tag a parser looks through the elements that are open, for every paragraph it opens again all formatting
elements that are (WHATWG HTML, 13.2.4.3), and it compares each attribute with those before it: without limits, time or
memory grow by the square of a page's size.
"""

from __future__ import annotations

import re
from collections import Counter

DEPTH = 512
"""Elements that may be open, as in Chromium."""
FORMATTING_DEPTH = 8
"""Formatting elements that may be open. Text is the same without them."""
ATTRIBUTES = 1000
"""Attributes that a tag may have."""
FEW = 2048
"""Tags that cannot take long."""
SHORT = 1 << 14
"""Characters of a tag that cannot take long, whatever its attributes are."""
_FORMATTING_NAMES = "a b big code em font i nobr s small strike strong tt u"
_EMPTY_NAMES = "area base br col embed hr img input link meta param source track wbr"
# Those that the next one closes, wherever they may stand.
_CLOSED_NAMES = "body caption colgroup dd dt head html li option p tbody td tfoot th thead tr"
_RAW_NAMES = "iframe noembed noframes plaintext script style textarea title xmp"
_FORMATTING = frozenset(_FORMATTING_NAMES.split())
_UNCOUNTED = frozenset([*_EMPTY_NAMES.split(), *_CLOSED_NAMES.split()])
_RAW = {name: re.compile(rf"</{name}[\s/>]", re.IGNORECASE) for name in _RAW_NAMES.split()}
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<(/?)([a-z][^\s/>]*)[^>]*(?:>|\Z)", re.DOTALL | re.IGNORECASE)
_BETWEEN = re.compile(r"[\s/]+")
_WITH_VALUES = re.compile(r"""<(?:=\s*"[^"]*"|=\s*'[^']*'|[^>])*(?:>|\Z)""")


def shallow(text: str, gaps: dict[str, int]) -> str:
    """The HTML, with tags of elements that stand too deep replaced by what keeps the text around them apart as much,
    and tags with too many attributes left without any.

    Args:
        text: any text.
        gaps: newlines that an element makes around itself, by its name; 0 for those not named.
    """
    if text.count("<") <= FEW and max(map(len, text.split(">"))) <= SHORT:
        return text
    elements = _Elements()
    parts: list[str] = []
    kept = place = 0
    while (tag := _TAG.search(text, place)) is not None:
        place, name = tag.end(), (tag[2] or "").lower()
        raw = name in _RAW and not tag[1] and not elements.foreign
        instead = None
        if name and _has_many_attributes(tag[0]):
            place, instead = _end_of_tag(text, tag.start()), f"<{tag[1]}{name}>"
        if name and name not in _UNCOUNTED and not raw and elements.is_one_too_many(name, tag[1], tag[0]):
            instead = ("", "<br>", "<hr>")[gaps.get(name, 0)]
        if instead is not None:
            parts += text[kept : tag.start()], instead
            kept = place
        if raw:
            end = _RAW[name].search(text, place)
            place = len(text) if end is None else end.start()
    return "".join([*parts, text[kept:]])


def _has_many_attributes(tag: str) -> bool:
    return len(tag) > SHORT and len(_BETWEEN.split(tag, ATTRIBUTES)) > ATTRIBUTES


def _end_of_tag(text: str, start: int) -> int:
    """Where a tag ends, of which a value between quotes may hold what else would end it."""
    found = _WITH_VALUES.match(text, start)
    assert found is not None
    return found.end()


class _Elements:
    """How many elements of each name are open, as far as their tags tell."""

    def __init__(self) -> None:
        self._open, self._dropped = Counter[str](), Counter[str]()
        self._depth = self._formatting = 0

    @property
    def foreign(self) -> bool:
        """Whether text is SVG or MathML, where `/>` closes an element and none holds raw text."""
        return self._open["svg"] + self._open["math"] > 0

    def is_one_too_many(self, name: str, slash: str, tag: str) -> bool:
        """Count a tag; whether it begins an element too many, or ends one."""
        return self._end(name) if slash else self._start(name, self.foreign and tag.endswith("/>"))

    def _start(self, name: str, closed: bool) -> bool:
        formatting = name in _FORMATTING
        if self._depth >= DEPTH or (formatting and self._formatting >= FORMATTING_DEPTH):
            self._dropped[name] += not closed
            return True
        if not closed:
            self._count(name, 1)
        return False

    def _end(self, name: str) -> bool:
        if self._dropped[name]:
            self._dropped[name] -= 1
            return True
        if self._open[name]:
            self._count(name, -1)
        return False

    def _count(self, name: str, change: int) -> None:
        self._open[name] += change
        self._depth += change
        self._formatting += change * (name in _FORMATTING)
