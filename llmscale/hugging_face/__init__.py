"""Hugging Face directories: reading one into a checkpoint, and writing a checkpoint as one."""
