"""The base of every config section, shared by the data pipeline and by llmscale.config."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen group of settings. Unknown keys are refused; each field is documented right beneath it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    renamed: ClassVar[dict[str, str]] = {}
    """Keys by the names that earlier releases had for them, which are still read."""
    renamed_values: ClassVar[dict[str, dict[str, str]]] = {}
    """By key, its values by the names that earlier releases had for them."""
