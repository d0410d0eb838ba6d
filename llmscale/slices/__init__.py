"""Which part of a global tensor a rank has: `TensorSlice`, and its arithmetic."""
