"""ModernBERT (Warner et al. 2024): an encoder with rotary positions and a global layer among local ones."""

PRESET: dict[str, object] = {
    "architecture": "encoder",
    "max_positions": 8192,
    "positions": "rotary",
    "rotary_base": 160000.0,
    "rotary_local_base": 10000.0,
    "attention_pattern": ["global", "local", "local"],
    "window": 128,
    "embedding_norm": True,
    "first_norm": False,
    "activation": "geglu",
    "bias": False,
    "head_transform": True,
    "head_bias": True,
}
