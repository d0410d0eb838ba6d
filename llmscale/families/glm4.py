"""GLM-4-0414 (Zhipu AI 2025): `glm` with norms on both sides of each sub-layer."""

from __future__ import annotations

from llmscale.families import glm
from llmscale.families.hugging_face import renamed

PRESET: dict[str, object] = {**glm.PRESET, "norm_order": "sandwich"}

HUGGING_FACE = glm.table(
    "Glm4",
    renamed(
        {
            "attention_norm": "input_layernorm",
            "post_attention_norm": "post_self_attn_layernorm",
            "feed_forward_norm": "post_attention_layernorm",
            "post_feed_forward_norm": "post_mlp_layernorm",
        },
        "blocks.{layer}.",
        "model.layers.{layer}.",
    ),
)
