"""Tokenizers: text to token ids and back. A run keeps its own copy in a directory."""

from data_pipeline.tokenizer.base import Tokenizer
from data_pipeline.tokenizer.bytes_tokenizer import BytesTokenizer
from data_pipeline.tokenizer.store import load_tokenizer, prepare_tokenizer

__all__ = ["BytesTokenizer", "Tokenizer", "load_tokenizer", "prepare_tokenizer"]
