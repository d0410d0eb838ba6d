"""llmscale: train language models of every published family, from raw text to an evaluated model."""

__version__ = "0.1.0"
