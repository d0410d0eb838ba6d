"""The optimizers of `optimizer.name`, each right on whole parameters and on ZeRO's partitions of them."""

from llmscale.engine.optimizers.build import build_optimizer, create_state, hidden_matrix, set_learning_rate
from llmscale.engine.optimizers.sharded import Part, ShardedOptimizer

__all__ = ["Part", "ShardedOptimizer", "build_optimizer", "create_state", "hidden_matrix", "set_learning_rate"]
