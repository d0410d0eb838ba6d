"""Text from a trained decoder: one prompt, a KV cache, greedy or sampled."""

from llmscale.generate.decode import generate, stream
from llmscale.generate.sampling import Sampler

__all__ = ["Sampler", "generate", "stream"]
