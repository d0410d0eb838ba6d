"""AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization")."""

from llmscale.config.optimizers.kind import OptimizerKind

KIND = OptimizerKind(description="torch's fused AdamW", kept=lambda settings, hidden: 2)
