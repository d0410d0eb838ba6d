"""PanGu-alpha (Zeng et al. 2021): GPT's block, and a top layer that asks by position. `layers` counts that layer."""

PRESET: dict[str, object] = {"query_layer": True, "activation": "gelu_tanh"}
