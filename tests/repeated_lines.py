"""No two places of the product share eight or more lines of code: `python -m tests.repeated_lines` lists those that do.

Imports, signatures, comments, docstrings, blank lines and lines of brackets alone do not count.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launcher", "llmscale", "data_pipeline")
RUN = 8
"""Lines from which on a repetition counts."""
_NOTHING = re.compile(r"[\s\[\](){},]*(#.*)?")


def code_lines(text: str) -> list[tuple[int, str]]:
    """Lines of code with their numbers, without indentation."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left_out |= set(range(node.lineno, node.body[0].lineno))
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if number not in left_out and not _NOTHING.fullmatch(line)]


def repeated(files: dict[str, str]) -> Iterator[str]:
    """A line for each run that stands in two places, by the longest form of it."""
    lines = {name: code_lines(text) for name, text in files.items()}
    seen: dict[tuple[str, ...], tuple[str, int]] = {}
    told: tuple[str, int, str, int] | None = None
    for name, own in lines.items():
        for place in range(len(own) - RUN + 1):
            window = tuple(line for _, line in own[place : place + RUN])
            other = seen.setdefault(window, (name, place))
            if other == (name, place) or (other[0] == name and place - other[1] < RUN):
                continue
            if told != (name, place - 1, other[0], other[1] - 1):  # else the run before, a line further
                yield f"{other[0]}:{lines[other[0]][other[1]][0]} and {name}:{own[place][0]} share {RUN} lines or more"
            told = (name, place, *other)


def main() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = list(repeated({str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}))
    for line in found:
        print(line)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
