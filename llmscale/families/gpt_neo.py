"""GPT-Neo (Black et al. 2021): global and local attention in turn, scores without a factor, few biases."""

PRESET: dict[str, object] = {
    "attention_pattern": ["global", "local"],
    "window": 256,
    "attention_scale": 1.0,
    "qkv_bias": False,
    "max_positions": 2048,
}
