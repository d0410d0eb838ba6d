"""Which tokens begin a new word."""

from __future__ import annotations

import unicodedata

UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Characters of scripts that put no space between words."""
BEGINNING_LEADS = frozenset((*range(0xE2, 0xEA), *range(0xEF, 0xF5)))
"""First bytes of UTF-8 that stand almost always for punctuation, symbols, kana or Han: U+2000 to U+9FFF, and from
U+F000 on."""


def begins_word(token: bytes) -> bool:
    """Whether a token, as the UTF-8 bytes it stands for, begins a new word.

    It does unless it starts with a letter, digit or combining mark, which goes on with the word before: so spaces and
    punctuation begin words, and so does every character of a script without spaces, as BERT splits them (Devlin et
    al. 2019, whole-word masking of May 2019). A character that is cut into several tokens begins one with its first.
    """
    if not token:
        return False
    lead = token[0]
    length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    try:
        character = token[:length].decode()
    except UnicodeDecodeError:
        return lead in BEGINNING_LEADS
    if any(first <= ord(character) <= last for first, last in UNSPACED):
        return True
    return unicodedata.category(character)[0] not in "LNM"
