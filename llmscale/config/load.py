"""YAML file and dotted overrides to a frozen RunConfig."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_pipeline.base.errors import UserError, first_line
from llmscale.config.explain import cut, explain, keys_of
from llmscale.config.inherited import with_inherited
from llmscale.config.renamed import RENAMED, by_new_names
from llmscale.config.root import RunConfig
from llmscale.config.yaml_files import BoundedLoader, load_yaml, read_yaml


def load_config(
    path: str | Path, overrides: list[str] | tuple[str, ...] = (), tell: Callable[[str], None] | None = None
) -> RunConfig:
    """Read a YAML config; `overrides` are `dotted.key=value` strings that win over the file.

    Args:
        tell: told of keys that have another name now.

    Raises:
        UserError: a missing file, broken YAML, an unknown key (with the nearest known one) or a wrong value.
    """
    return parse_config(read_yaml(Path(path)), overrides, str(path), tell)


def parse_config(
    raw: dict[str, Any],
    overrides: list[str] | tuple[str, ...] = (),
    origin: str = "config",
    tell: Callable[[str], None] | None = None,
) -> RunConfig:
    """Validate a nested mapping as `load_config` does; `origin` names it in messages."""
    try:
        raw, old = by_new_names(raw)
        for override in overrides:
            key, equals, value = override.partition("=")
            old += [key] if key in RENAMED else []
            _apply(raw, f"{RENAMED.get(key, key)}{equals}{value}")
        raw, within = by_new_names(raw)
        raw = with_inherited(raw)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    for key in dict.fromkeys([*old, *within]) if tell else ():
        tell(f"{origin}: {key} is now called {RENAMED[key]}")  # type: ignore[misc]
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{origin}: {explain(error, RunConfig)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML; loading it gives the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' is not of the form dotted.key=value, such as train.steps=100")
    try:
        value = load_yaml(text, _OverrideLoader)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or first_line(error)
        raise UserError(
            f"override '{cut(override)}': '{cut(text)}' is not a valid YAML value ({reason}); quote it"
        ) from None
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"override '{override}': '{'.'.join(parents)}' is a value, not a section")


class _OverrideLoader(BoundedLoader):
    """YAML in which a line break within a text stays one, where YAML would fold it to a space: in an override it was
    typed for its own sake."""

    def scan_flow_scalar_spaces(self, double: bool, start_mark: Any) -> list[str]:
        """Blanks and line breaks between the words of a quoted text, as they stand there."""
        chunks = [""]
        while self.peek() in " \t\r\n\x85\u2028\u2029":
            chunks.append(self.peek())
            self.forward()
        if self.peek() == "\0":
            return super().scan_flow_scalar_spaces(double, start_mark)  # which says that the quote is not closed
        return chunks

    def get_single_node(self) -> Any:
        """The whole override, where it is a text without quotes: the text as it stands."""
        node = super().get_single_node()
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag == "tag:yaml.org,2002:str":
            text = node.start_mark.buffer.removesuffix("\0") if node.start_mark.buffer is not None else ""
            if "\n" in text and not re.search(r"(^|\s)#", text):
                node.value = text
        return node


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, override)]
    if not isinstance(node, dict):
        raise UserError(f"override '{override}': '{part}' lies below a value, not a section")
    if node.get(part) is None:
        node[part] = {}
    return node[part]


def _index(node: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"override '{override}': '{part}' is not an index below {len(node)}")
    return int(part)


def known_keys() -> list[tuple[str, str]]:
    """Every (dotted key, description) of a config, as `keys_of` lists them."""
    return keys_of(RunConfig)
