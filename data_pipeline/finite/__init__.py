"""Finite sets of samples over tokens in Megatron-compatible .bin/.idx files: written, read, shuffled and cut."""
