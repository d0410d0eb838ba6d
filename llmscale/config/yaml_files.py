"""YAML of people's files, within bounds: what a few lines stand for must not fill the memory or the stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from data_pipeline.base.durable import read_text
from data_pipeline.base.errors import UserError, first_line

_DEPTH = 100
"""Most levels of lists and mappings."""
_REPEATED = 100_000
"""Most values that aliases (`*name`) stand for, all together; nine lines of nine aliases would stand for a billion."""
_BITS = 256
"""Most bits of an integer: Python refuses to print one of thousands of digits, and none is meant."""


def load_yaml(text: str, loader: type[BoundedLoader] | None = None) -> Any:
    """A YAML value.

    Args:
        loader: what reads it, where that is not `BoundedLoader` itself.

    Raises:
        yaml.YAMLError: it is none, or is beyond the bounds above; `problem` says what is wrong.
    """
    return yaml.load(text, loader or BoundedLoader)


def read_yaml(
    path: Path, what: str = "config", sections: str = "'model:' and 'data:'", loader: type[BoundedLoader] | None = None
) -> dict[str, Any]:
    """The mapping that a file holds.

    Args:
        what: what messages call the file.
        sections: what it should hold, in a message about one that holds something else.
        loader: as `load_yaml` takes it.

    Raises:
        UserError: there is no such file, it cannot be read, or it is no YAML mapping.
    """
    try:
        raw = load_yaml(read_text(path), loader)
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; this folder has {', '.join(near[:5])}" if near else ""
        raise UserError(f"no {what} file {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"cannot read {what} file {path}: {reason}; give a YAML file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{path} is not valid YAML{where}: {problem}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold sections such as {sections}, but holds {type(raw).__name__}")
    return raw


class BoundedLoader(yaml.SafeLoader):
    """YAML's safe loader within the bounds above."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0
        self._repeated = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise ComposerError(None, None, "an alias stands within what it stands for", mark)
            self._repeated += self._sizes[id(node)]
            self._values += self._sizes[id(node)]
            if self._repeated > _REPEATED:
                raise ComposerError(None, None, f"its aliases stand for more than {_REPEATED:,} values", mark)
            return node
        self._depth += 1
        if self._depth > _DEPTH:
            raise ComposerError(None, None, f"it is nested more than {_DEPTH} levels deep", mark)
        before = self._values
        self._values += 1
        node = super().compose_node(parent, index)
        self._sizes[id(node)] = self._values - before
        self._depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except yaml.YAMLError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            # A date such as 2026-13-41, an integer of 5,000 digits, `!!int ""`.
            raise ConstructorError(None, None, f"it is no value of the kind {node.tag}", node.start_mark) from None
        if type(value) is int and value.bit_length() > _BITS:
            raise ConstructorError(None, None, f"an integer has more than {_BITS} bits", node.start_mark)
        return _joined(value, node) if isinstance(value, str) and not value.isascii() else value


def _joined(text: str, node: yaml.Node) -> str:
    """A text in which two escapes for one character, as JSON writes them, are that character."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        problem = r"a text has half of a character, an escape such as \ud83d without the other half"
        raise ConstructorError(None, None, problem, node.start_mark) from None
