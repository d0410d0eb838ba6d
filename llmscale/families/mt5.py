"""mT5 (Xue et al. 2021): T5 v1.1 for many languages, Chinese among them, with a vocabulary of 250,000 tokens."""

from llmscale.families import t5, t5_v1_1

PRESET: dict[str, object] = {**t5_v1_1.PRESET, "max_positions": 1024}
HUGGING_FACE = t5.table(gated=True, multilingual=True)
