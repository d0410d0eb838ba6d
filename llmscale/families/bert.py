"""BERT (Devlin et al. 2019): an encoder with norms after each sum, segment embeddings, and two heads."""

PRESET: dict[str, object] = {
    "architecture": "encoder",
    "max_positions": 512,
    "norm_order": "post",
    "norm_eps": 1e-12,
    "embedding_norm": True,
    "activation": "gelu",
    "token_types": 2,
    "next_sentence": True,
    "head_transform": True,
    "head_bias": True,
}
