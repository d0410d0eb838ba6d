"""Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms")."""

from llmscale.config.optimizers.kind import OptimizerKind

KIND = OptimizerKind(
    description="the sign of a momentum (Chen et al. 2023)",
    kept=lambda settings, hidden: 1,
    defaults={"betas": (0.9, 0.99)},
)
