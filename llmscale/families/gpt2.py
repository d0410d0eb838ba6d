"""GPT-2 (Radford et al. 2019): learned positions, pre-norm, tied head."""

PRESET: dict[str, object] = {}
