"""How the fields of CSV and TSV files are told apart, and headers that say it is done otherwise."""

from __future__ import annotations

from typing import NamedTuple

from data_pipeline.base.encodings import decodes, guess, shown_in

_SEPARATORS = (",", ";", "\t", "|")
_SHOWN = 80
"""Characters of a header that a message shows."""


class Dialect(NamedTuple):
    """How fields are told apart."""

    separator: str
    quote: str
    """One character; empty where quotes are ordinary characters."""
    escape: str = ""
    """One character; empty where there is none."""
    guessed: bool = False
    """Whether nobody said that there are no quotes, so that a file that has them is refused."""

    @property
    def lines(self) -> bool:
        """Whether every newline ends a record."""
        return not (self.quote or self.escape)


def header_problem(header: list[str], missing: set[str], line: bytes, dialect: Dialect, encoding: str) -> str | None:
    """Why a header seems to lack fields that it has in another encoding or dialect, and what to do, as what follows the
    file's name; None where it has not.

    Args:
        header: its names, read by `dialect`.
        missing: fields that are not among them.
        line: its bytes in `encoding`.
    """
    if any("\r" in name for name in header):
        return (
            "has carriage returns alone between its lines, which do not end a row; convert it"
            " (tr '\\r' '\\n' < IN > OUT does that)"
        )
    found = None if decodes(line, encoding) else guess(line)
    if found is not None:
        return (
            f"has a header that is not {encoding} but probably {shown_in(found, line)}; set encoding of the source to"
            f" {found.encoding}, or convert it to UTF-8"
        )
    shown = ", ".join(map(repr, header))[:_SHOWN]
    if not dialect.quote and missing & {name[1:-1] for name in header if name[:1] == name[-1:] == '"'}:
        return f"""has the header {shown}; set quote of the source to '"', since its names are quoted"""
    for separator in _SEPARATORS if len(header) == 1 else ():
        if missing & {name.strip('"') for name in header[0].split(separator)}:
            return f"has the header {shown}; set delimiter of the source to {separator!r}"
    return None
