"""The Chinese README says what the English one says: the same sections, commands, tables and links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def skeleton(name: str) -> dict[str, list[str]]:
    text = (ROOT / name).read_text(encoding="utf-8")
    code = [line for block in re.findall(r"^```.*?^```$", text, re.M | re.S) for line in block.splitlines()]
    links = {link for link in re.findall(r"\]\(([^)]+)\)", text) if link != "README.zh-CN.md"}
    return {
        "headings": re.findall(r"^#+ ", text, re.M),
        "code": [line.split("  #")[0].rstrip() for line in code],
        "rows": [str(line.count("|")) for line in text.splitlines() if line.startswith("|")],
        "links": sorted(links),
    }


def test_the_readmes_are_translations_of_each_other() -> None:
    assert skeleton("README.zh-CN.md") == skeleton("README.md")
