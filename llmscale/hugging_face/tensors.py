"""Tensors of a Hugging Face directory: one file or several with an index, read and written one tensor at a time."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError
from data_pipeline.sources.first_bytes import require_contents_at
from llmscale.hugging_face.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What tensors can be written as, by the name on the command line."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_CHUNK = 16 << 20
_SAFE = ".safetensors"
_PICKLED = (
    "and a pickle can run code when it is read; save the model as safetensors, or give --allow-pickle to read the"
    " tensors alone"
)


class TensorFolder:
    """The tensors in a directory. Nothing of a tensor is read before it is asked for.

    Raises:
        UserError: there are none, a file is missing or damaged, or they are pickled and `allow_pickle` is not set.
    """

    def __init__(self, folder: Path, allow_pickle: bool = False) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._allow_pickle = allow_pickle
        self._files = self._found(allow_pickle)

    @property
    def names(self) -> list[str]:
        """Their names."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        held = self._handle(self._files[name])
        try:
            return tuple(held[name].shape if isinstance(held, dict) else held.get_slice(name).get_shape())
        except Exception as error:  # the library raises its own and several others
            raise self._damaged(self._files[name], error) from None

    def read(self, name: str) -> Tensor:
        """A tensor in fp32.

        Raises:
            UserError: it is no tensor of floating-point numbers or holds one that is none, or the file is damaged.
        """
        held = self._handle(self._files[name])
        try:
            tensor = held[name] if isinstance(held, dict) else held.get_tensor(name)
        except Exception as error:
            raise self._damaged(self._files[name], error) from None
        if not isinstance(tensor, Tensor):
            raise self._damaged(self._files[name], TypeError(f"{name} in it is no tensor"))
        if tensor.dtype not in _NAMES:
            raise UserError(
                f"{name} in {self.folder / self._files[name]} is {tensor.dtype}, but llmscale reads fp32, bf16, fp16"
                f" and fp64; dequantize the model first"
            )
        found = tensor.float()
        if not bool(found.isfinite().all()):
            broken = int((~found.isfinite()).sum())
            raise UserError(
                f"{name} in {self.folder / self._files[name]} has {broken:,} of {found.numel():,} values that are NaN"
                f" or infinite in fp32, so that the model gives nothing but NaN; download it again, or give an earlier"
                f" one"
            )
        return found

    def _found(self, allow_pickle: bool) -> dict[str, str]:
        """File by tensor name."""
        folder = self.folder
        for index in (INDEX, PICKLE_INDEX) if allow_pickle else (INDEX,):
            if (folder / index).is_file():
                return self._by_index(folder / index)
        for single in (SINGLE, PICKLE) if allow_pickle else (SINGLE,):
            if (folder / single).is_file():
                return dict.fromkeys(self._keys(single), single)
        if any((folder / name).is_file() for name in (PICKLE, PICKLE_INDEX)):
            raise UserError(f"{folder} has its tensors in {PICKLE} only, {_PICKLED}")
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; give a folder with a model's tensors")

    def _by_index(self, path: Path) -> dict[str, str]:
        found = read_json(path, "download it again").get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
            raise UserError(f"{path} has no weight_map from tensors to files; download it again")
        for file in sorted(set(found.values())):
            if Path(file).name != file:
                raise UserError(f"{path} names the file {file!r}, which is not in the folder; download it again")
            if not file.endswith(_SAFE) and not self._allow_pickle:
                raise UserError(f"{path} names the file {file!r}, {_PICKLED}")
            if not (self.folder / file).is_file():
                count = sum(other == file for other in found.values())
                raise UserError(
                    f"{self.folder / file} is missing, which {path.name} says holds {count} tensors; download it again"
                )
            lacking = sorted({name for name, other in found.items() if other == file} - set(self._keys(file)))
            if lacking:
                raise UserError(
                    f"{self.folder / file} lacks {lacking[0]}, which {path.name} says it holds; download it again"
                )
        return found

    def _keys(self, file: str) -> list[str]:
        names = list(self._handle(file).keys())
        if not all(isinstance(name, str) for name in names):
            raise self._damaged(file, ValueError("it holds no tensors by their names"))
        return names

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            try:
                if not file.endswith(_SAFE):
                    path = self.folder / file
                    mapped = zipfile.is_zipfile(path)  # older files cannot be mapped
                    self._open[file] = torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
                    if not isinstance(self._open[file], dict):
                        raise ValueError("it holds no tensors by their names")
                else:
                    from safetensors import safe_open

                    self._open[file] = safe_open(self.folder / file, framework="pt")
            except Exception as error:  # safetensors has an exception of its own, and raises others too
                raise self._damaged(file, error) from None
        return self._open[file]

    def _damaged(self, file: str, error: Exception) -> UserError:
        require_contents_at(self.folder / file)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UserError(f"cannot read {self.folder / file}: {reason}; download it again")


def write_tensors(
    folder: Path,
    entries: Sequence[tuple[str, tuple[int, ...]]],
    tensors: Iterator[Tensor],
    dtype: torch.dtype,
    limit: int,
) -> None:
    """Write tensors as safetensors; in several files with an index, where they take more than `limit` bytes.

    Args:
        entries: names and shapes, in the order in which `tensors` gives them.
        limit: most bytes of tensors in a file; a larger tensor has a file of its own.
    """
    width = torch.empty(0, dtype=dtype).element_size()
    shards: list[list[tuple[str, tuple[int, ...]]]] = []
    room = 0
    for name, shape in entries:
        size = prod(shape) * width
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append((name, shape))
        room -= size
    if len(shards) == 1:
        _write(folder / SINGLE, shards[0], tensors, dtype)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / file, shard, tensors, dtype)
        weight_map.update(dict.fromkeys((name for name, _ in shard), file))
    total = sum(prod(shape) * width for _, shape in entries)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write(
    path: Path, entries: Sequence[tuple[str, tuple[int, ...]]], tensors: Iterator[Tensor], dtype: torch.dtype
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in entries:
        end = position + prod(shape) * torch.empty(0, dtype=dtype).element_size()
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in entries:
            tensor = next(tensors)
            assert tuple(tensor.shape) == shape, name
            data = tensor.to(dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, data.size, _CHUNK):
                file.write(data[start : start + _CHUNK])


def parse_size(text: str) -> int:
    """Bytes from `5GB`, `200 MiB` or a number.

    Raises:
        UserError: it is no such size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*", text)
    power = "KMGT".find(match[2].upper()) + 1 if match and match[2] else 0
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power) if match else 0
    if size < 1:
        raise UserError(f"--shard-size is {text!r}, but must be a size such as 5GB, 500MB or 2GiB")
    return size
