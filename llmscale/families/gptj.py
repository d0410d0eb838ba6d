"""GPT-J (Wang and Komatsuzaki 2021): interleaved rotary positions, attention and feed-forward side by side."""

PRESET: dict[str, object] = {
    "positions": "rotary",
    "rotary_fraction": 0.25,
    "rotary_interleaved": True,
    "parallel_residual": True,
    "shared_norm": True,
    "qkv_bias": False,
    "attention_output_bias": False,
    "tied_embeddings": False,
    "head_bias": True,
    "max_positions": 2048,
}
