"""mosaicml-streaming over the windows of a .bin file: `python -m benchmarks.data_streaming SCRATCH`, one step a line.

A program of its own, which imports only numpy, torch and `streaming`, so that it can run in another environment.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.harness import serve


class WithoutTorchvision:
    """Finds an empty `torchvision`, which `streaming` imports for its data sets of pictures alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        stands_in = name.partition(".")[0] == "torchvision"
        return ModuleSpec(name, self, is_package=True) if stands_in else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.VisionDataset = object  # type: ignore[attr-defined]
        module.to_tensor = None  # type: ignore[attr-defined]


def import_streaming() -> Any:
    """The library. Raises ImportError where it is not installed."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # an installed one that does not fit torch raises RuntimeError
        import transformers  # noqa: F401  (looks for torchvision too, and must not find the empty one)

        sys.meta_path.insert(0, WithoutTorchvision())  # type: ignore[arg-type]
    import streaming

    return streaming


def step_of(scratch: Path) -> Any:
    """The step: batches of torch int64 until as many as the loader's step has."""
    setup = json.loads((scratch / "setup.json").read_text())
    width, batch, wanted = setup["sequence"] + 1, setup["batch"], setup["indexed_batches"]
    streaming = import_streaming()
    folder = tempfile.mkdtemp(dir=scratch)
    tokens = np.memmap(scratch / "indexed.bin", dtype=setup["indexed_dtype"], mode="r")
    with streaming.MDSWriter(out=folder, columns={"tokens": f"ndarray:{tokens.dtype.name}:{width}"}) as writer:
        for start in range(0, len(tokens) - width, setup["sequence"]):
            writer.write({"tokens": np.array(tokens[start : start + width])})
    data = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=batch, num_canonical_nodes=1)

    def collate(rows: Sequence[dict[str, np.ndarray]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64))

    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield from torch.utils.data.DataLoader(data, batch_size=batch, collate_fn=collate, drop_last=True)

    batches = endless()
    return lambda: float(sum(rows[:, 1:].numel() for rows in itertools.islice(batches, max(1, wanted // 10))))


def main() -> None:
    """Run as a program; with --check only say whether the library can be imported."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scratch", nargs="?", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        print(import_streaming().__version__)
    else:
        torch.set_num_threads(1)
        serve(lambda: step_of(arguments.scratch))


if __name__ == "__main__":
    main()
