"""Qwen3-MoE (Yang et al. 2025): Qwen3's block with many small experts."""

from llmscale.families import qwen3

PRESET: dict[str, object] = {
    **qwen3.PRESET,
    "experts": {"count": 128, "per_token": 8, "balance_weight": 0.001},
}
