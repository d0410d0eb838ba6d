"""The Transformer as plain modules: no parallelism, no communication, no environment variables."""

from llmscale.model.cache import KeyValueCache
from llmscale.model.transformer import Output, Transformer

__all__ = ["KeyValueCache", "Output", "Transformer"]
