"""Whether a reference stands in the text, in any language, case, width and punctuation aside: TriviaQA's aliases."""

from __future__ import annotations

import unicodedata

from data_pipeline.base.unicode import normalize
from llmscale.evaluate.metrics.base import Options
from llmscale.evaluate.metrics.texts import text_metric

_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""First words of the names of letters whose scripts put no space between words."""


def plain(text: str) -> str:
    """Compatibility forms folded (NFKC), lower case, punctuation and runs of white space as one space."""
    folded = normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c).startswith("P") else c for c in folded).split())


def _contains(reference: str, text: str, options: Options) -> float:
    """Whole words only, where words are parted by spaces: "art" is not in "party"."""
    sought, within = plain(reference), plain(text)
    place = within.find(sought) if sought else -1
    while place >= 0:
        end = place + len(sought)
        if not (_joined(within, place) or _joined(within, end)):
            return 1.0
        place = within.find(sought, place + 1)
    return 0.0


def _joined(text: str, place: int) -> bool:
    """Whether a word goes on across this place."""
    return 0 < place < len(text) and all(c.isalnum() and not _unspaced(c) for c in text[place - 1 : place + 1])


def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)


METRICS = (text_metric("contains", "a reference stands in the text, in any language", _contains),)
