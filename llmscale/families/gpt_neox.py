"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): rotary positions on a quarter of each head."""

PRESET: dict[str, object] = {
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "parallel_residual": True,
    "activation": "gelu",
    "tied_embeddings": False,
    "max_positions": 2048,
}
