"""Stochastic gradient descent with momentum."""

from llmscale.config.optimizers.kind import OptimizerKind

KIND = OptimizerKind(
    description="plain SGD with momentum (it shows errors of gradient scale that AdamW hides)",
    kept=lambda settings, hidden: int(settings.momentum > 0),
    proportional=True,
)
