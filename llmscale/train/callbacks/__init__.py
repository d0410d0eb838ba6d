"""What happens beside training, one file each: the ledger, logging, evaluation, checkpoints and more."""

from llmscale.train.callbacks.base import Callback

__all__ = ["Callback"]
