"""The whole pipeline on a corpus that every machine has: Python's own standard library."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipeline.config import DataConfig
from data_pipeline.finite.heldout import build_evaluation_set, heldout_documents, training_documents
from data_pipeline.loader import TrainLoader
from data_pipeline.stream.cursor import merge_cursors
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer


def test_from_files_to_batches_and_back(tmp_path: Path) -> None:
    patterns = [f"{{python_stdlib}}/{name}/**/*.py" for name in ("json", "email", "asyncio", "unittest", "http")]
    data = DataConfig.model_validate(
        {
            "sources": [{"paths": patterns, "exclude": ["site-packages", "dist-packages", "__pycache__"]}],
            "holdout": 0.15,
            "tokenizer": {"train": {"vocab_size": 2048, "max_bytes": 600_000}},
            "sequence_length": 128,
            "lanes": 6,
            "shuffle_buffer": 48,
            "workers": 2,
        }
    )
    tokenizer = prepare_tokenizer(data, tmp_path / "tokenizer")
    training, held = list(training_documents(data, tokenizer)), list(heldout_documents(data, tokenizer))
    assert len(held) > 3
    assert all(tokenizer.decode(ids) == text for ids, text in zip(tokenizer.encode_batch(held), held, strict=True))
    found = build_evaluation_set(data, load_tokenizer(tmp_path / "tokenizer"), tmp_path / "cache")
    assert found.bytes == sum(len(text.encode()) for text in held)
    assert found.bytes / found.tokens > 2.5

    loaders = [
        TrainLoader(data, load_tokenizer(tmp_path / "tokenizer"), seed=1, dp_rank=rank, dp_size=2) for rank in (0, 1)
    ]
    whole = "\0".join(training)
    for loader in loaders:
        for _ in range(3):
            batch, _ = loader.take(8)
            assert int(batch.inputs.max()) < tokenizer.vocab_size
            for row in batch.inputs:
                assert _longest_document_part(row, tokenizer) in whole
    cursor = merge_cursors([loader.cursor() for loader in loaders])
    following = [loader.take(8)[0].inputs for loader in loaders]
    for loader in loaders:
        loader.close()
    with TrainLoader(
        data, load_tokenizer(tmp_path / "tokenizer"), seed=1, dp_rank=0, dp_size=1, first_sample=48, cursor=cursor
    ) as resumed:
        together = resumed.take(16)[0].inputs
    assert torch.equal(together[0::2], following[0])
    assert torch.equal(together[1::2], following[1])


def _longest_document_part(tokens: torch.Tensor, tokenizer: object) -> str:
    """The text of the longest stretch without eos, less a token at each end, whose bytes may be cut."""
    parts: list[list[int]] = [[]]
    for token in tokens.tolist():
        if token == 2:
            parts.append([])
        else:
            parts[-1].append(token)
    longest = max(parts, key=len)
    return tokenizer.decode(longest).strip("�")  # type: ignore[attr-defined]
