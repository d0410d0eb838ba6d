"""Measuring the peak memory of a training step on real ranks."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.batch import Batch
from llmscale.config import RunConfig, parse_config
from llmscale.engine.distributed import join, leave, read_world
from llmscale.engine.engine import accumulation
from llmscale.engine.pipeline import make_engine
from llmscale.objectives import build_loss
from llmscale.parallel import init
from llmscale.train.build import build_grid

VOCAB, LENGTH = 1024, 128
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2", "layers": 4, "hidden_size": 256, "heads": 8},
    "llama": {"family": "llama", "layers": 4, "hidden_size": 256, "heads": 8, "kv_heads": 4, "ffn_size": 688},
}


def peak_config(
    family: str, stage: int, recompute: str, samples: int, micro: int, dtype: str = "fp32", **parallel: Any
) -> RunConfig:
    """A small run of `samples` samples a step."""
    return parse_config(
        {
            "run": {"directory": "unused", "seed": 3},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": LENGTH},
            "model": {**FAMILIES[family], "vocab_size": VOCAB, "max_positions": LENGTH},
            "parallel": parallel,
            "train": {"steps": 20, "global_batch": samples, "micro_batch": micro},
            "engine": {"zero_stage": stage, "recompute": recompute, "bucket_elements": 500_000, "dtype": dtype},
        }
    )


class Watch(TorchDispatchMode):
    """Counts the storages that operations make, and forgets each when it is freed, on whatever thread that is.

    torch.profiler does not see what gloo's threads free.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.highest = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._known or not size or storage.device.type == "meta":
            return
        self._known[address] = weakref.ref(storage, partial(self._forget, address)), size
        self.current += size
        self.highest = max(self.highest, self.current)

    def _forget(self, address: int, reference: object) -> None:
        if address in self._known and self._known[address][0] is reference:
            self.current -= self._known.pop(address)[1]

    def begin(self) -> None:
        """Look for the highest from now on, starting from what Python can reach between two steps."""
        gc.collect()
        self._known.clear()
        self.current = 0
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor):
                self._note(thing.untyped_storage())
        self.highest = self.current


def peak_of_a_step(config: RunConfig) -> int:
    """Most bytes of tensors on this rank during the third step."""
    join(read_world("cpu"))
    grid = build_grid(config, read_world("cpu"))
    micro, count = accumulation(config, grid.data)
    targets = float(config.train.global_batch * LENGTH)
    with Watch() as watch:
        model = init.build_hollow(config.model, VOCAB, grid, config.parallel.tensor_sequence)
        loss = build_loss(config.objective, config.model)
        weights = init.drawn(config.model, config.run.seed)
        engine = make_engine(model, loss, config, grid, torch.device("cpu"), weights)
        for step in range(3):
            given = batches(micro, count, grid.coordinate("data"))
            watch.begin()
            engine.train_step(given, step, [targets])
    leave()
    return watch.highest


def batches(micro: int, count: int, place: int) -> list[Batch]:
    """Random tokens of one data-parallel rank."""
    draw = torch.Generator().manual_seed(place)
    rows = torch.randint(0, VOCAB, (count, micro, LENGTH + 1), generator=draw)
    return [Batch(row[:, :-1], row[:, 1:], torch.ones(micro, LENGTH), torch.arange(micro)) for row in rows]
