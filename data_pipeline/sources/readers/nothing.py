"""Why a source gave no document at all, in words."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.base.errors import setting
from data_pipeline.sources.readers.bad_records import EMPTY, KEPT, BadRecords, by_reason
from data_pipeline.sources.readers.extract import NO_TEXT, TOO_LONG

_NAMED = 2


def nothing_kept(files: Sequence[str], bad: BadRecords, where: str) -> str:
    """What was read instead of documents, why it was dropped, and what to do.

    Args:
        files: paths of the source's files.
        bad: what reading all of them met.
        where: the source's place in the config.
    """
    named = ", ".join(files[:_NAMED]) + (f" and {len(files) - _NAMED} more" if len(files) > _NAMED else "")
    reasons = by_reason(bad.dropped)
    if not reasons:
        return f"its {len(files)} files ({named}) are empty, or have no rows; add documents, or leave the source out"
    first = bad.noted[0] if bad.noted else None
    detail = f": {first.detail}" if first is not None and first.detail else ""
    example = f", the first at {first.place}{detail}" if first is not None else ""
    # What was repaired is among what cleaning dropped.
    most = max(bad.dropped, key=lambda reason: (reason not in KEPT, bad.dropped[reason]))
    return f"of {bad.records_read:,} records in {named} none was kept ({reasons}{example}); {_fix(most, detail, where)}"


def _fix(reason: str, detail: str, where: str) -> str:
    if reason == TOO_LONG or "max_document_bytes" in detail:
        return "raise data.max_document_bytes"
    if reason == NO_TEXT:
        return f"set {setting(where, 'field')} to the field that holds the text, or convert the file"
    if reason == EMPTY:
        return "add documents, or leave the source out"
    # Cleaning counts under "STEP: RULE".
    return "relax data.cleaning" if ": " in reason else "correct the file, or leave the source out"
