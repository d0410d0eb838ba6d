"""T5 v1.1 (Shazeer 2020; Raffel et al. 2020, code): T5 with a gated GELU and a head of its own."""

from llmscale.families import t5

PRESET: dict[str, object] = {**t5.PRESET, "activation": "geglu_tanh", "tied_embeddings": False, "scaled_head": False}
HUGGING_FACE = t5.table(gated=True)
