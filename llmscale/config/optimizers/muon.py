"""Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon)."""

from llmscale.config.optimizers.kind import OptimizerKind

KIND = OptimizerKind(
    description="orthogonalised momentum for hidden matrices, AdamW for embeddings, head, norms and biases (Jordan"
    " 2024)",
    kept=lambda settings, hidden: 1 if hidden else 2,
    defaults={"momentum": 0.95},
    whole_tensors=True,
    hidden_apart=True,
)
