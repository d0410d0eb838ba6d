"""In the style of Wu Dao 2.0 (BAAI 2021): GPT's block with experts in every other layer, by FastMoE (He et al. 2021).

Nothing about the block is published; top-2 gates with a capacity factor are GShard's (Lepikhin et al. 2021); here
the capacity is given out by position.
"""

PRESET: dict[str, object] = {
    "experts": {
        "count": 16,
        "per_token": 2,
        "every": 2,
        "capacity_factor": 1.25,
        "balance_weight": 0.01,
        "z_weight": 0.001,
    },
}
