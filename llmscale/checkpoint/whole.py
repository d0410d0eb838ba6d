"""Writing a checkpoint that has weights only, from one process and without a run: what `llmscale import` makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from data_pipeline.base.errors import UserError
from llmscale.checkpoint import commit
from llmscale.checkpoint.errors import NotFiniteError
from llmscale.checkpoint.manifest import FileEntry, Piece, RankRecord, RunState, TensorEntry
from llmscale.checkpoint.tensor_file import write_safetensors
from llmscale.slices.tensor_slice import TensorSlice


def write_whole(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    state: RunState,
    tokenizer: Mapping[str, bytes],
    part_bytes: int = 1 << 30,
) -> None:
    """Fill an empty folder with a checkpoint of step 0. No more than `part_bytes` and a tensor are held at a time.

    Args:
        folder: empty.
        tensors: the weights by canonical name, in fp32; drawn one at a time.
        state: what else the manifest says.
        tokenizer: its files.
        part_bytes: another file is started beyond this many bytes.

    Raises:
        UserError: a tensor holds NaN or Inf.
        OSError: the disk is full, or any other failure to write.
    """
    entries: dict[str, TensorEntry] = {}
    files: dict[str, FileEntry] = {}
    held: dict[str, torch.Tensor] = {}
    size = 0

    def flush() -> None:
        try:
            files[file] = write_safetensors(folder / file, held)
        except NotFiniteError as error:
            raise UserError(
                f"{error} holds values that are not finite (NaN or Inf), of which no checkpoint is made; give a model"
                f" whose weights are numbers"
            ) from None
        held.clear()

    file = f"{commit.rank_name(0)}.safetensors"
    for name, tensor in tensors:
        if held and size + tensor.numel() * 4 > part_bytes:
            flush()
            file, size = f"{commit.rank_name(0)}-{len(files)}.safetensors", 0
        size += tensor.numel() * 4
        key, whole = f"weight/{name}", TensorSlice.whole(tensor.shape)
        held[key] = tensor.contiguous()
        entries[name] = TensorEntry(shape=whole.shape, kinds={"weight": [Piece.of(whole, file, key)]})
    flush()
    record = RankRecord(tensors=entries, files=files, cursor={})
    # `finish` removes the rank's record, as it does after a save of several ranks.
    (folder / f"{commit.rank_name(0)}.json").touch()
    commit.finish(
        folder,
        step=0,
        attempt=0,
        state=state,
        records=[record],
        merge_cursors=commit.merge_disjoint,
        tokenizer=dict(tokenizer),
    )
