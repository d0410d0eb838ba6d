"""Vectors of texts, by any trained model."""

from llmscale.embeddings.embedder import Embedder, Settings

__all__ = ["Embedder", "Settings"]
