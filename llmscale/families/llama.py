"""Llama, up to Llama 3 (Touvron et al. 2023; Grattafiori et al. 2024): rotary positions, RMSNorm, SwiGLU, no biases."""

PRESET: dict[str, object] = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "bias": False,
    "tied_embeddings": False,
    "max_positions": 2048,
}
