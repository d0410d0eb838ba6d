"""The Transformer as plain modules: no parallelism, no communication, no environment variables."""

from llmscale.model.cache import KeyValueCache
from llmscale.model.dropout import Dropout, Part
from llmscale.model.transformer import Output, Transformer

__all__ = ["Dropout", "KeyValueCache", "Output", "Part", "Transformer"]
