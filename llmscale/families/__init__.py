"""The published model families: one file each, with the parts it is made of and its tensors in Hugging Face's layout.

Tables only: nothing here imports torch, and the config imports this.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal, get_args

Family = Literal[
    "gpt2", "gpt3", "gpt_neo", "gptj", "gpt_neox", "bert", "t5", "t5_v1_1", "pangu_alpha", "wu_dao", "megatron_nlg",
    "llama", "qwen3", "mistral", "mixtral", "qwen3_moe", "modernbert",
]  # fmt: skip
NAMES: tuple[str, ...] = get_args(Family)
WITH_CLASS = (
    "gpt2", "llama", "bert", "t5", "t5_v1_1", "gpt_neo", "gptj", "gpt_neox", "qwen3", "mistral", "mixtral", "qwen3_moe",
    "modernbert",
)  # fmt: skip
"""Families that transformers has a class for, each with its table HUGGING_FACE; Megatron-Turing NLG is GPT-2's."""


def family(name: str) -> ModuleType:
    """The file of a family."""
    return importlib.import_module(f"llmscale.families.{name}")


def preset(name: str) -> dict[str, Any]:
    """The model settings of a family that differ from the defaults, without sizes; nothing for an unknown name."""
    return dict(family(name).PRESET) if name in NAMES else {}
