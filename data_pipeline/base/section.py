"""The base of every config section, shared by the data pipeline and by llmscale.config."""

import ast
import functools
import inspect
import textwrap
from itertools import pairwise
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of settings. Unknown keys are refused; each field is documented right beneath it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    renamed: ClassVar[dict[str, str]] = {}
    """Keys by the names that earlier releases had for them, which are still read."""
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {}
    """By key, its values by the names that earlier releases had for them."""


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """What each field of a section means: what `Field` says of it, or the docstring beneath it.

    pydantic's `use_attribute_docstrings` would read all sources at every start, where few ask for a description.
    """
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= _docstrings(base)
    return {name: field.description or found.get(name, "") for name, field in section.model_fields.items()}


@functools.cache
def _docstrings(section: type[BaseModel]) -> dict[str, str]:
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
