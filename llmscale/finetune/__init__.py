"""Fine-tuning: which tensors a run trains, which it re-initialises, and at what rates."""
