"""Models beside each other on the same items: what is surely better, and how many items would tell."""

from llmscale.evaluate.compare.models import Model, load_model
from llmscale.evaluate.compare.pairs import Comparison, Disagreement, compare

__all__ = ["Comparison", "Disagreement", "Model", "compare", "load_model"]
