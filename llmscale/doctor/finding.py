"""What a check has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    status: Status
    """`warn`: runs work, but not all of them or not as well as they could; `fail`: runs will not work."""
    name: str
    """Of the check."""
    text: str
    """What was found, with figures."""
    fix: str = ""
    """What to do; empty where nothing is to be done."""

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)

    def as_line(self) -> str:
        """As a person reads it."""
        return f"{self.status}  {self.name}: {self.text}" + (f"; {self.fix}" if self.fix else "")
