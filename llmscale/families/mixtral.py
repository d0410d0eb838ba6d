"""Mixtral (Jiang et al. 2024): Llama's block with eight experts, two for each token."""

from llmscale.families import llama

PRESET: dict[str, object] = {
    **llama.PRESET,
    "rotary_base": 1e6,
    "experts": {"count": 8, "per_token": 2, "balance_weight": 0.02},
}
