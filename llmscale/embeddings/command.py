"""`llmscale embed`."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.durable import read_file
from data_pipeline.base.progress import Progress
from data_pipeline.base.terminal import tell
from llmscale.checkpoint.manifest import MANIFEST
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.embeddings.embedder import Embedder, Settings
from llmscale.embeddings.files import Meta, VectorWriter, digest_of

WINDOW = 512
"""Texts whose vectors are written at once: enough for full batches, and no more than that is lost by a kill."""


def embed_texts(
    checkpoint: Path,
    texts: list[str],
    output: Path,
    settings: Settings,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> str:
    """Write the vectors of texts; what an earlier start of the same has written is not made again.

    Returns:
        What was done, in a line.

    Raises:
        UserError: no intact checkpoint, an output that cannot be written, or as `Embedder`.
    """
    trained = load_model(checkpoint, device, dtype)
    embedder = Embedder(trained.model, trained.tokenizer, settings)
    writer = VectorWriter(output, meta_of(trained, texts, embedder, settings, dtype))
    progress = Progress(noun="texts")
    progress("embed", writer.done, len(texts))
    for first in range(writer.done, len(texts), WINDOW):
        some = texts[first : first + WINDOW]
        writer.append(embedder.embed(some, batch_size, first))
        progress("embed", first + len(some), len(texts))
    writer.finish(texts)
    if embedder.cut:
        limit = trained.config.model.max_positions
        tell(f"{embedder.cut:,} of {len(texts):,} texts were cut, since the context has {limit:,} tokens")
    return f"{output}: {len(texts):,} vectors of {embedder.channels} numbers"


def meta_of(
    trained: TrainedModel, texts: list[str], embedder: Embedder, settings: Settings, dtype: torch.dtype
) -> Meta:
    """What decides the vectors of texts."""
    decisive: dict[str, Any] = asdict(settings) | {
        "layers": list(settings.layers),
        "pooling": embedder.pooling,
        "normalize": embedder.normalize,
        "dtype": str(dtype),
    }
    model = hashlib.sha256(read_file(trained.checkpoint.path / MANIFEST)).hexdigest()
    return Meta(model, digest_of(texts), decisive, embedder.channels)
