"""ROUGE (Lin 2004): F1 of shared n-grams, of the longest common subsequence, and of that by lines of a summary.

English words as the package rouge-score takes them, so that figures are equal; Chinese by characters. The F1 of the
best reference counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from llmscale.evaluate.metrics.base import ItemMean, Option, Options
from llmscale.evaluate.metrics.porter import stem
from llmscale.evaluate.metrics.texts import f_score, text_metric

Tokens = list[str]

_ENGLISH = re.compile(r"[a-z0-9]+")
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE = re.compile(f"[{_HAN}]|[^\\W_{_HAN}]+")
_OPTIONS = {"language": Option("en", allowed=("en", "zh")), "stem": Option(False)}

_stem = cache(stem)


def tokens_of(text: str, options: Options) -> Tokens:
    """Words of ASCII letters and digits, stemmed where longer than 3; in Chinese each character, other words whole."""
    text = text.lower()
    if options["language"] == "zh":
        return _CHINESE.findall(text)
    words = _ENGLISH.findall(text)
    return [_stem(word) if len(word) > 3 else word for word in words] if options["stem"] else words


def rouge_n(reference: Tokens, written: Tokens, n: int) -> float:
    right, own = _n_grams(reference, n), _n_grams(written, n)
    shared = (right & own).total()
    return f_score(shared / max(own.total(), 1), shared / max(right.total(), 1))


def rouge_l(reference: Tokens, written: Tokens) -> float:
    if not reference or not written:
        return 0.0
    shared = _lengths(reference, written)[-1][-1]
    return f_score(shared / len(written), shared / len(reference))


def rouge_lsum(reference: Sequence[Tokens], written: Sequence[Tokens]) -> float:
    """ROUGE-L of a summary (Lin 2004, section 3.2), both given by lines.

    Of each reference line the words that are in a longest common subsequence with any written line count, none more
    often than it occurs in either text.
    """
    left_right = Counter(word for line in reference for word in line)
    left_written = Counter(word for line in written for word in line)
    length, own_length = left_right.total(), left_written.total()
    if not length or not own_length:
        return 0.0
    hits = 0
    for line in reference:
        union = {place for other in written for place in _common_places(line, other)}
        for place in sorted(union):
            word = line[place]
            if left_right[word] > 0 and left_written[word] > 0:
                hits += 1
                left_right[word] -= 1
                left_written[word] -= 1
    return f_score(hits / own_length, hits / length)


def _n_grams(tokens: Tokens, n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _lengths(left: Tokens, right: Tokens) -> list[list[int]]:
    """[i][j]: length of the longest common subsequence of the first i and the first j."""
    table = [[0] * (len(right) + 1)]
    for word in left:
        above, row = table[-1], [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[place]))
        table.append(row)
    return table


def _common_places(left: Tokens, right: Tokens) -> list[int]:
    """Places in `left` of one longest common subsequence; of several, that which rouge-score takes."""
    table = _lengths(left, right)
    i, j, places = len(left), len(right), []
    while i and j:
        if left[i - 1] == right[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


def _of_tokens(score: Callable[[Tokens, Tokens], float]) -> Callable[[str, str, Options], float]:
    return lambda reference, text, options: score(tokens_of(reference, options), tokens_of(text, options))


def _by_lines(reference: str, text: str, options: Options) -> float:
    lines = [[tokens_of(line, options) for line in side.split("\n") if line] for side in (reference, text)]
    return rouge_lsum(*lines)


def _metric(name: str, summary: str, compare: Callable[[str, str, Options], float]) -> ItemMean:
    return text_metric(name, summary, compare, _OPTIONS)


METRICS = (
    _metric("rouge1", "F1 of shared words", _of_tokens(lambda right, own: rouge_n(right, own, 1))),
    _metric("rouge2", "F1 of shared pairs of words", _of_tokens(lambda right, own: rouge_n(right, own, 2))),
    _metric("rougeL", "F1 by the longest common subsequence", _of_tokens(rouge_l)),
    _metric("rougeLsum", "F1 by the longest common subsequences of lines", _by_lines),
)
