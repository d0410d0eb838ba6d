"""The kinds of tokenizers, with what the config, plans and importing ask of each. Facts only."""

from __future__ import annotations

from dataclasses import dataclass

MODEL_FILE, TOKENIZER_FILE, WORDPIECE_FILE = "tokenizer.model", "tokenizer.json", "vocab.txt"
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"


@dataclass(frozen=True)
class TokenizerKind:
    """What a kind of tokenizers declares. What encodes is a class of `data_pipeline.tokenizer` with its name as `kind`,
    made of the contents of the files."""

    files: tuple[str, ...] = ()
    """Its files in a saved copy; `data.tokenizer.path` names the first."""
    trained: bool = False
    """Whether it can be trained from the sources."""
    options: tuple[str, ...] = ()
    """Settings of `data.tokenizer` that decide what it makes of a text."""


TOKENIZER_KINDS = {
    "sentencepiece": TokenizerKind((MODEL_FILE,), trained=True),
    "huggingface": TokenizerKind((TOKENIZER_FILE,)),
    "gpt2": TokenizerKind((VOCABULARY_FILE, MERGES_FILE)),
    "wordpiece": TokenizerKind((WORDPIECE_FILE,), options=("lower_case",)),
    "bytes": TokenizerKind(),
}
