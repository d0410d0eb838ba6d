"""What words, lines and paragraphs are, in English and in Chinese."""

from __future__ import annotations

import re

EXAMINED = 1_000_000
"""Characters of a document that costly measures examine, so that one huge document takes bounded time and memory."""
HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Chinese characters, as the inside of a regular expression's character class."""
LINE_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
"""Line breaks other than the newline."""

_HAN_RUN = re.compile(f"[{HAN}]+")
_LETTERS = re.compile(rf"[^\W\d_{HAN}]+")
_CHINESE_PUNCTUATION = "、。〈〉《》「」『』【】〔〕〖〗〝〞·—–‘’“”…‧！＂＇（），．：；？［］｛｝～"
_CHINESE_WORD = re.compile(rf"[{HAN}]|[^\s{HAN}{_CHINESE_PUNCTUATION}]+")
_ASCII_PUNCTUATION = "!\"'()*,-./:;?[]{}_`~"
_SENTENCE = re.compile("[^\n。！？]*[。！？]+[”’」』）]*|[^\n。！？]+")
_BLANK_LINES = re.compile(r"\n\s*\n")


def is_chinese(text: str) -> bool:
    """Whether at least half of the words are Chinese, each Chinese character counted as one word."""
    if text.isascii():
        return False
    characters = sum(map(len, _HAN_RUN.findall(text)))
    return characters > 0 and characters >= sum(1 for _ in _LETTERS.finditer(text))


def split_words(text: str, chinese: bool) -> list[str]:
    """The words of a text.

    English: what stands between whitespace. Chinese: each Chinese character; and whatever else stands between
    whitespace, Chinese characters and Chinese punctuation, without the ASCII punctuation at its ends. (In English,
    punctuation is part of a word.)
    """
    if not chinese:
        return text.split()
    return [word for part in _CHINESE_WORD.findall(text) if (word := part.strip(_ASCII_PUNCTUATION))]


def split_lines(text: str, chinese: bool) -> list[str]:
    """Lines that are not blank, without the space around them; Chinese is also cut after the ends of sentences."""
    lines = _SENTENCE.findall(text) if chinese else text.split("\n")
    return [stripped for line in lines if (stripped := line.strip())]


def split_paragraphs(text: str) -> list[str]:
    """What stands between blank lines, without the space around it."""
    return [stripped for part in _BLANK_LINES.split(text) if (stripped := part.strip())]


def blank(text: str) -> bool:
    """Whether a text holds nothing but whitespace."""
    return not text or text.isspace()
