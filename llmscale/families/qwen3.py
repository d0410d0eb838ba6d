"""Qwen3 (Yang et al. 2025): Llama's block with norms on queries and keys."""

from llmscale.families import llama

PRESET: dict[str, object] = {**llama.PRESET, "query_key_norm": True, "norm_eps": 1e-6, "rotary_base": 1e6}
