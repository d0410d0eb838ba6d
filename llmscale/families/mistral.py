"""Mistral (Jiang et al. 2023): Llama's block with a sliding window."""

from llmscale.families import llama

PRESET: dict[str, object] = {**llama.PRESET, "attention_pattern": ["local"], "window": 4096}
