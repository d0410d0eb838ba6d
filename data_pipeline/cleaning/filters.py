"""Steps that drop documents. A filter is asked for a text and answers with the rule that the text breaks, or None."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.cleaning.config import GopherQualityStep, LanguageStep, LengthStep
from data_pipeline.cleaning.extra import require
from data_pipeline.cleaning.text import is_chinese, split_lines, split_words

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
CHINESE_STOP_WORDS = frozenset(
    "的了是在不有这那我你他她们也就都和与着把被从很又没或但并将让由"  # modern
    "之其而以于为者乃则无何此所若自矣哉兮曰皆莫未"  # classical
    "這們與於為無則從沒並將讓"  # in traditional characters
)
LANGUAGE_CHARACTERS = 2_000
"""Characters of a document that its language is told from."""

_ELLIPSIS = re.compile(r"\.{3,}|…+|。{3,}")
_ELLIPSIS_END = re.compile(r"(?:\.{3}|…)[\"'”’」』）)]*$")
_BULLET = re.compile(r"[•‣▶◀◦■□▪▫●○◆◇★·]|[-–*+](?=\s)")
_LETTER = re.compile(r"[^\W\d_]")
# Wu and Cantonese are written in Chinese characters, and py3langid gives them part of the probability of short texts.
_SAME_LANGUAGE = {"wuu": "zh", "yue": "zh"}


def reject_length(config: LengthStep) -> Callable[[str], str | None]:
    """See `LengthStep`."""

    def reject(text: str) -> str | None:
        if len(text) < config.min:
            return "too short"
        return "too long" if config.max is not None and len(text) > config.max else None

    return reject


def reject_low_quality(config: GopherQualityStep) -> Callable[[str], str | None]:
    """See `GopherQualityStep`."""

    def reject(text: str) -> str | None:
        if _more_words(text, config.max_words):
            return "too many words"
        return next((rule for rule, broken in _quality_rules(text, config) if broken), None)

    return reject


def _quality_rules(text: str, config: GopherQualityStep) -> Iterator[tuple[str, bool]]:
    """Each rule and whether the text breaks it."""
    chinese = is_chinese(text)
    words = split_words(text, chinese)
    count = len(words)
    yield "too many words", count > config.max_words
    yield "too few words", count < max(1, config.min_words)
    if not chinese:
        mean = sum(map(len, words)) / count
        yield "short words", mean < config.min_mean_word_length
        yield "long words", mean > config.max_mean_word_length
    yield "hash signs", text.count("#") > config.max_symbol_ratio * count
    yield "ellipses", sum(1 for _ in _ELLIPSIS.finditer(text)) > config.max_symbol_ratio * count
    lines = split_lines(text, chinese=False)
    bullets = sum(1 for line in lines if _BULLET.match(line))
    yield "bullet lines", bullets > config.max_bullet_line_fraction * len(lines)
    unfinished = sum(1 for line in lines if _ELLIPSIS_END.search(line))
    yield "ellipsis lines", unfinished > config.max_ellipsis_line_fraction * len(lines)
    occurrences = Counter(words)
    alphabetic = sum(n for word, n in occurrences.items() if word.isalpha() or _LETTER.search(word))
    yield "words without letters", alphabetic < config.min_alphabetic_word_fraction * count
    stop_words = (CHINESE_STOP_WORDS if chinese else STOP_WORDS).intersection(map(str.lower, occurrences))
    yield "too few stop words", len(stop_words) < config.min_stop_words


def _more_words(text: str, limit: int) -> bool:
    """Whether a text has more words than `limit` for certain, without splitting what may be very long."""
    if len(text) <= 2 * limit:
        return False
    return sum(1 for _ in itertools.islice(re.finditer(r"\S+", text), limit + 1)) > limit


def reject_language(config: LanguageStep, where: str) -> Callable[[str], str | None]:
    """See `LanguageStep`; raises UserError when py3langid is missing or does not know a language."""
    identify = _identifier(where)
    unknown = sorted(set(config.languages) - set(identify.labels))
    if unknown:
        raise UserError(
            f"{where}.languages has {unknown[0]!r}, which py3langid does not know; its languages are"
            f" {', '.join(sorted(identify.labels))}"
        )
    wanted = set(config.languages)

    def reject(text: str) -> str | None:
        probabilities: dict[str, float] = {}
        for label, probability in identify.rank(text[:LANGUAGE_CHARACTERS]):
            language = label if label in wanted else _SAME_LANGUAGE.get(label, label)
            probabilities[language] = probabilities.get(language, 0.0) + probability
        language = max(probabilities, key=lambda name: probabilities[name])
        if language not in wanted:
            return f"language {language}"
        return "uncertain language" if probabilities[language] < config.min_probability else None

    return reject


def _identifier(where: str) -> Any:
    return _load_identifier(require("py3langid.langid", where))


@functools.cache
def _load_identifier(langid: Any) -> Any:
    """The model that comes with py3langid, with probabilities that add up to one; loaded once a process."""
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
