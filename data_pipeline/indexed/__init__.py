"""Tokens in Megatron-compatible .bin/.idx files: preparing, reading, shuffling and cutting them into samples."""
