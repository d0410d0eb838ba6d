"""Fine-tuning: which tensors a run trains, which it draws anew, and at what rates."""
