"""HTML with no more elements open at a time than browsers allow.

For every tag a parser looks through the elements that are open, and for every paragraph it opens again all formatting
elements that are (WHATWG HTML, 13.2.4.3): what nests without end takes time or memory by the square of its size.
"""

from __future__ import annotations

import re
from collections import Counter

DEPTH = 512
"""Elements that may be open, as in Chromium."""
FORMATTING_DEPTH = 8
"""Formatting elements that may be open. Text is the same without them."""
FEW = 2048
"""Tags that cannot take long."""
_FORMATTING_NAMES = "a b big code em font i nobr s small strike strong tt u"
_EMPTY_NAMES = "area base br col embed hr img input link meta param source track wbr"
# Those that the next one closes, wherever they may stand.
_CLOSED_NAMES = "body caption colgroup dd dt head html li option p tbody td tfoot th thead tr"
_RAW_NAMES = "iframe noembed noframes plaintext script style textarea title xmp"
_FORMATTING = frozenset(_FORMATTING_NAMES.split())
_UNCOUNTED = frozenset([*_EMPTY_NAMES.split(), *_CLOSED_NAMES.split()])
_RAW = {name: re.compile(rf"</{name}[\s/>]", re.IGNORECASE) for name in _RAW_NAMES.split()}
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<(/?)([a-z][^\s/>]*)[^>]*(?:>|\Z)", re.DOTALL | re.IGNORECASE)


def shallow(text: str, gaps: dict[str, int]) -> str:
    """The HTML, with tags of elements that stand too deep replaced by what keeps the text around them apart as much.

    Args:
        text: any text.
        gaps: newlines that an element makes around itself, by its name; 0 for those not named.
    """
    if text.count("<") <= FEW:
        return text
    elements = _Elements()
    parts: list[str] = []
    kept = place = 0
    while (tag := _TAG.search(text, place)) is not None:
        place, name = tag.end(), (tag[2] or "").lower()
        if not name or name in _UNCOUNTED:
            continue
        if tag[1]:
            dropped = elements.end(name)
        elif name in _RAW and not elements.foreign:
            end = _RAW[name].search(text, place)
            place = len(text) if end is None else end.start()
            continue
        else:
            dropped = elements.start(name, closed=elements.foreign and tag[0].endswith("/>"))
        if dropped:
            parts += text[kept : tag.start()], ("", "<br>", "<hr>")[gaps.get(name, 0)]
            kept = place
    return "".join([*parts, text[kept:]])


class _Elements:
    """How many elements of each name are open, as far as their tags tell."""

    def __init__(self) -> None:
        self._open, self._dropped = Counter[str](), Counter[str]()
        self._depth = self._formatting = 0

    @property
    def foreign(self) -> bool:
        """Whether text is SVG or MathML, where `/>` closes an element and none holds raw text."""
        return self._open["svg"] + self._open["math"] > 0

    def start(self, name: str, closed: bool) -> bool:
        """Count a start tag; whether it is one too many."""
        formatting = name in _FORMATTING
        if self._depth >= DEPTH or (formatting and self._formatting >= FORMATTING_DEPTH):
            self._dropped[name] += not closed
            return True
        if not closed:
            self._count(name, 1)
        return False

    def end(self, name: str) -> bool:
        """Count an end tag; whether it is that of a start tag too many."""
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
