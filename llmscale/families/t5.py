"""T5 v1.0 (Raffel et al. 2020): relative positions, RMSNorm, no biases, scores without a factor."""

PRESET: dict[str, object] = {
    "architecture": "encoder_decoder",
    "max_positions": 512,
    "positions": "relative",
    "attention_scale": 1.0,
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "activation": "relu",
    "bias": False,
    "scaled_head": True,
    "dropout_scheme": "t5",
    "init_scheme": "fan_in",
}
