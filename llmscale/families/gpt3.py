"""GPT-3 (Brown et al. 2020): GPT-2's block, with dense and locally banded attention in turn (section 2.1).

The width of the band is not published; 256 is that of GPT-Neo, which followed GPT-3.
"""

PRESET: dict[str, object] = {"attention_pattern": ["global", "local"], "window": 256, "max_positions": 2048}
