"""Megatron-Turing NLG (Smith et al. 2022): GPT-2's block, wide and deep."""

PRESET: dict[str, object] = {"max_positions": 2048}
