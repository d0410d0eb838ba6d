"""Adafactor (Shazeer and Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost")."""

from llmscale.config.optimizers.kind import OptimizerKind

KIND = OptimizerKind(
    description="second moments of matrices by row and column only (Shazeer and Stern 2018), as T5 was trained",
    # But for the sums by row and column, which are small.
    kept=lambda settings, hidden: int(settings.momentum > 0),
    whole_tensors=True,
)
