"""The pictures of the house in docs/design/overview.md, made from the imports: `python -m docs.rooms` renews them.

An arrow goes from a room to one that it imports, unless it does so through another that it imports too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tests.test_imports import ROOT, imported_modules

PAGE = ROOT / "docs/design/overview.md"
_LLMSCALE, _PIPELINE = "llmscale", "data_pipeline"


def rooms_of(root: Path, package: str) -> dict[str, set[str]]:
    """For each room of `package`, those that it imports; other packages of the project are one room each."""

    def room(module: str) -> str:
        parts = module.split(".")
        return parts[1] if parts[0] == package and len(parts) > 1 else parts[0]

    found: dict[str, set[str]] = {}
    for module, targets in imported_modules(root).items():
        if module.partition(".")[0] == package:
            found.setdefault(room(module), set()).update(map(room, targets))
    drawn = {name: targets - {name, package} for name, targets in found.items() if name != package}
    return {name: targets & (drawn.keys() | {_PIPELINE, "launcher"}) for name, targets in drawn.items()}


def reduced(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no way over another room stands for."""

    def reach(names: Iterable[str]) -> set[str]:
        seen: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += edges.get(name, ())
        return seen

    return sorted(
        (name, target)
        for name, targets in edges.items()
        for target in targets
        if not any(target in reach(edges.get(other, ())) for other in targets - {target})
    )


def picture(root: Path, package: str) -> str:
    """A Mermaid graph."""
    lines = [f"    {name} --> {target}" for name, target in reduced(rooms_of(root, package))]
    return "\n".join(["```mermaid", "graph TD", *lines, "```"])


def page(text: str, root: Path = ROOT) -> str:
    """The page with its pictures renewed."""
    for package in (_LLMSCALE, _PIPELINE):
        begin, end = f"<!-- rooms of {package} -->", f"<!-- end of the rooms of {package} -->"
        drawn = f"{begin}\n{picture(root, package)}\n{end}"
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, drawn=drawn: drawn, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
