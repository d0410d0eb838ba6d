"""The visible text of HTML documents, parsed by selectolax (Lexbor) as browsers parse them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.cleaning.extra import require
from data_pipeline.cleaning.nesting import shallow

_WIDE_BLOCKS = (
    "address article aside blockquote center details dialog div dl fieldset figure footer form h1 h2 h3 h4 h5 h6"
    " header hgroup hr main nav ol p pre section table ul"
)
_BLOCKS = "br caption dd dt figcaption legend li option summary tbody tfoot thead tr"
_CELLS = ("td", "th")
_HIDDEN_TAGS = "audio canvas datalist head iframe math noframes noscript object script style svg template title video"
_OTHERS = (
    "a abbr b base big body cite code del em font html i img input ins kbd label link mark meta q s samp small span"
    " strike strong sub sup tt u"
)
_HIDDEN = frozenset(_HIDDEN_TAGS.split())
# How far a block keeps away from the text around it, in newlines.
_GAPS = {**dict.fromkeys(_WIDE_BLOCKS.split(), 2), **dict.fromkeys(_BLOCKS.split(), 1)}
_NAMES = frozenset({*_GAPS, *_CELLS, *_HIDDEN, *_OTHERS.split()})
_TAG = re.compile(r"</?([A-Za-z][A-Za-z0-9]*)(?:\s[^<>]*)?/?>")
_START = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?(?:<!--[^>]*-->\s*)*<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_MANY_TAGS = 3
_LEVELS = 8
"""Most times that HTML may be escaped within HTML."""
_SPACES = re.compile("[ \t\n\f\r]+")


def html_text(where: str) -> Callable[[str], str]:
    """The step; raises UserError when selectolax is not installed."""
    parser = require("selectolax.lexbor", where).LexborHTMLParser

    def change(text: str) -> str:
        for _ in range(_LEVELS):
            if not looks_like_html(text):
                break
            # Lone surrogates have no UTF-8 form.
            body = parser(shallow(text.encode(errors="replace").decode(), _GAPS)).body
            text = "" if body is None else _visible_text(body)
        return text

    return change


def looks_like_html(text: str) -> bool:
    """Whether a text starts as an HTML document or holds at least three known tags."""
    if _START.match(text):
        return True
    known = (tag for tag in _TAG.finditer(text) if tag[1].lower() in _NAMES)
    return len(list(itertools.islice(known, _MANY_TAGS))) == _MANY_TAGS


class _Layout:
    """Text with the gaps between its pieces: the widest gap asked for between two pieces is the one that is made."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._newlines = 0
        self._space = False

    def gap(self, newlines: int) -> None:
        self._newlines = max(self._newlines, newlines)

    def space(self) -> None:
        self._space = True

    def text(self, text: str, keep_whitespace: bool) -> None:
        words = text if keep_whitespace else _SPACES.sub(" ", text)
        after = not keep_whitespace and words.endswith(" ")
        if not keep_whitespace:
            self._space |= words.startswith(" ")
            words = words.strip(" ")
        if not words:
            return
        if self.parts:
            self.parts.append("\n" * self._newlines or " " * self._space)
        self.parts.append(words)
        self._newlines, self._space = 0, after


def _visible_text(body: Any) -> str:
    layout, preformatted = _Layout(), 0
    for node, entering in _walk(body):
        tag = node.tag
        if tag == "-text":
            layout.text(node.text_content or "", preformatted > 0)
            continue
        if tag in ("pre", "textarea"):
            preformatted += 1 if entering else -1
        if tag in _CELLS:
            layout.space()
        layout.gap(_GAPS.get(tag, 0))
    return "".join(layout.parts)


def _walk(root: Any) -> Iterator[tuple[Any, bool]]:
    """Nodes in document order, elements a second time at their end; hidden ones are left out. Without recursion,
    since documents may nest to any depth."""
    node, entering = root, True
    while True:
        hidden = node.tag in _HIDDEN
        if not hidden and (node.is_text_node or node.is_element_node):
            yield node, entering
        child = node.first_child if entering and not hidden else None
        if child is not None:
            node = child
            continue
        if entering and node.is_element_node and not hidden:
            yield node, False
        if node.mem_id == root.mem_id:
            return
        following = node.next
        node, entering = (node.parent, False) if following is None else (following, True)
