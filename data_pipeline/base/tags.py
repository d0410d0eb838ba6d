"""Entities that the tags of words spell: B-, I- and O (Ramshaw and Marcus 1995), or with E- and S- (IOBES)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Scheme = Literal["bio", "iobes", "none"]
BEFORE: dict[Scheme, dict[str, str]] = {
    "bio": {"O": "OBI", "B": "OBI", "I": "BI"},
    "iobes": {"O": "OES", "B": "OES", "S": "OES", "I": "BI", "E": "BI"},
}
"""By scheme and prefix: the prefixes that may stand before. Before and behind all tags stands O."""
_OUTSIDE = "O"


def parts(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag: ("B", "PER") of B-PER, ("O", "") of O."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def is_tag(tag: str, scheme: Scheme) -> bool:
    """Whether it is O, or a prefix of the scheme with a type."""
    prefix, kind = parts(tag)
    return scheme == "none" or tag == _OUTSIDE or (prefix != _OUTSIDE and prefix in BEFORE[scheme] and bool(kind))


def breaks(tags: Sequence[str], scheme: Scheme) -> bool:
    """Whether tags follow each other that no entities spell, such as I-PER behind O."""
    if scheme == "none":
        return False
    allowed, before = BEFORE[scheme], ("O", "")
    for tag in [*tags, _OUTSIDE]:
        prefix, kind = parts(tag)
        inside = prefix in "IE" and prefix != _OUTSIDE
        if before[0] not in allowed[prefix] or (inside and kind != before[1]):
            return True
        before = prefix, kind
    return False


def spelled(kinds: Sequence[str | None], begins: Sequence[bool], scheme: Scheme) -> list[str]:
    """Tags of words.

    Args:
        kinds: the type of the entity that each word is in; None for words in none.
        begins: whether it is the first word of its entity.
        scheme: bio or iobes; none: the types themselves, and O.
    """
    found = []
    for place, kind in enumerate(kinds):
        if kind is None:
            found.append(_OUTSIDE)
            continue
        ends = place + 1 == len(kinds) or kinds[place + 1] is None or begins[place + 1]
        first = "S" if scheme == "iobes" and ends else "B"
        prefix = first if begins[place] else "E" if scheme == "iobes" and ends else "I"
        found.append(kind if scheme == "none" else f"{prefix}-{kind}")
    return found


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, last word) of the entities that tags of either scheme spell, by the rules of the shared task
    of CoNLL 2000 (conlleval; also those of seqeval): an I- that follows nothing of its type begins an entity."""
    found: list[tuple[str, int, int]] = []
    first, before = 0, ("O", "")
    for place, tag in enumerate([*tags, _OUTSIDE]):
        now = parts(tag)
        changed = now[1] != before[1]
        if before[0] != "O" and (before[0] in "ES" or now[0] in "BSO" or changed):
            found.append((before[1], first, place - 1))
        if now[0] != "O" and (now[0] in "BS" or before[0] in "ESO" or changed):
            first = place
        before = now
    return found
