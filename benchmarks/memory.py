"""What a rank holds while it trains, by part, and the most that it holds at a time.

    python -m benchmarks.memory [--layers 4] [--hidden 512] [--length 512] [--micro 2]

Two data-parallel replicas on CPU ranks, at ZeRO 1, 2 and 3 with and without tensor parallelism, of models like GPT-2
and like Llama. What is counted are the bytes of tensors: not what Python, the libraries and the allocator's pages take.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness import machine
from data_pipeline.batch import Batch
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.process_group import all_reduce_sum, join, leave, read_world
from llmscale.engine.deepspeed import zero_state
from llmscale.engine.engine import Engine, accumulation
from llmscale.engine.settings import EngineSettings
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parity.ranks import run_ranks
from llmscale.train.build import build_grid

PARTS = ("weights", "masters", "moments", "gradients", "buckets")
VOCAB, REPLICAS = 4096, 2
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2", "dropout": 0.0, "attention_dropout": 0.0},
    "llama": {"family": "llama"},
}


class LiveTensors(TorchDispatchMode):
    """Counts, within the block, the bytes of the storages of all CPU tensors while they live, and the most so far.

    torch's profiler is no use on ranks: it misses what is freed by the threads that communicate. What an operation
    takes for itself while it runs, and gives back, is not seen here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()
        # Other threads free tensors too, and a list grows atomically.
        self._changes: list[int] = []
        for each in gc.get_objects():
            if isinstance(each, Tensor) and _is_real(each):
                self._add(each.untyped_storage())
        self._changes.clear()

    @property
    def most(self) -> int:
        return max(itertools.accumulate(self._changes), default=0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and _is_real(each):
                self._add(each.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone() -> None:
            self._known.discard(key)
            self._changes.append(-size)

        self._known.add(key)
        self._changes.append(size)
        weakref.finalize(storage, gone)


def _is_real(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not isinstance(tensor, FakeTensor)


def peak_bytes(function: Callable[[], Any]) -> tuple[int, Any]:
    """(the most bytes of tensors beyond those at the start, result) of a call."""
    gc.collect()
    with LiveTensors() as live:
        result = function()
    return live.most, result


def state_bytes(engine: Engine) -> dict[str, int]:
    """Bytes of the storages of this rank's model state now, each counted once, by the first of `PARTS` that has it."""
    inner, optimizer = engine._engine, engine._engine.optimizer
    parameters = [parameter for _, parameter in engine.named]
    partitions = zero_state._partitions(inner)
    state = zero_state._inner_optimizer(inner).state
    gradients = [parameter.grad for parameter in parameters]
    gradients += [getattr(parameter, "grad_accum", None) for parameter in parameters]
    gradients += [partition.grad for partition in partitions]
    for name in ("averaged_gradients", "all_grad_tensors", "accumulated_grads_in_cpu", "grads_in_partition"):
        gradients += _flat(getattr(optimizer, name, None))
    gradients += _flat(getattr(optimizer, "grad_partitions_flat_buffer", None))
    held: dict[str, list[Any]] = {
        "weights": [*parameters, *(getattr(parameter, "ds_tensor", None) for parameter in parameters)],
        "masters": list(partitions),
        "moments": [value for values in state.values() for value in values.values()],
        "gradients": gradients,
        "buckets": [bucket.buffer for bucket in optimizer.ipg_buckets.values()],
    }
    counted: set[int] = set()
    return {part: _bytes(_flat(held[part]), counted) for part in PARTS}


def all_tensor_bytes() -> int:
    """Bytes of the storages of all tensors that Python can reach."""
    gc.collect()
    return _bytes([each for each in gc.get_objects() if isinstance(each, Tensor)], set())


def _bytes(tensors: Iterable[Any], counted: set[int]) -> int:
    total = 0
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
            continue
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in counted:
            counted.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [each for item in value.values() for each in _flat(item)]
    if isinstance(value, list | tuple):
        return [each for item in value for each in _flat(item)]
    return [] if value is None else [value]


def before_update(engine: Engine, look: Callable[[], Any], train: Callable[[], Any]) -> list[Any]:
    """What `look` gives whenever `train` is about to update: when gradients are complete."""
    seen: list[Any] = []
    step = engine._engine.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(look())
        return step(*args, **kwargs)

    engine._engine.step = watched
    try:
        train()
    finally:
        engine._engine.step = step
    return seen


def config_of(family: str, stage: int, tensor: int, layers: int, hidden: int, length: int, micro: int) -> RunConfig:
    """A config of the sizes of a model and its layout; every step has two micro batches on each replica."""
    heads = hidden // 64
    model = FAMILIES[family] | {"layers": layers, "hidden_size": hidden, "heads": heads, "vocab_multiple": 128}
    model |= {"max_positions": length, "kv_heads": heads}
    return parse_config(
        {
            "run": {"directory": "unused"},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": length},
            "model": model,
            "train": {"global_batch": REPLICAS * 2 * micro, "micro_batch": micro},
            "parallel": {"tensor": tensor},
            "engine": {"zero_stage": stage, "param_persistence_threshold": 0},
        }
    )


def measure_on_rank(config: RunConfig) -> dict[str, int]:
    """What this rank holds by `PARTS`, once when a step begins and once when its gradients are complete (`complete`),
    the sum of the former (`settled`), and the most beyond it during the step (`step`)."""
    engine, train = start_on_rank(config)
    train(0)
    found: dict[str, int] = state_bytes(engine)
    complete = before_update(engine, lambda: state_bytes(engine), lambda: train(1))[-1]
    found |= {f"{part} complete": size for part, size in complete.items()}
    found["settled"] = sum(found[part] for part in PARTS)
    found["step"], _ = peak_bytes(lambda: train(2))
    leave()
    return found


def start_on_rank(config: RunConfig) -> tuple[Engine, Callable[[int], None]]:
    """An engine on tokens drawn at random, and what trains the step of a number; the caller leaves the group."""
    join(read_world("cpu"))
    grid = build_grid(config, read_world("cpu"))
    model = init.build_hollow(config.model, VOCAB, grid, config.parallel.sequence_parallel)
    loss = build_loss(config.objective, config.model)
    engine = Engine(
        model, loss, EngineSettings.of(config), grid, torch.device("cpu"), init.drawn(config.model, config.run.seed)
    )
    micro, accumulated = accumulation(config.train, grid.data)
    length = config.data.sequence_length
    tokens = torch.randint(0, VOCAB, (micro * accumulated, length + 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(len(tokens), length), torch.arange(len(tokens)))
    counts = all_reduce_sum([count * grid.is_sample_leader for count in loss.counts(batch)])

    def train(step: int) -> None:
        engine.train_step(batch.split(micro), step, counts)

    return engine, train


def main() -> None:
    """Measure all layouts, print a table on stderr and a line of JSON on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("hidden", 512), ("length", 512), ("micro", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = vars(parser.parse_args())
    figures: dict[str, dict[str, int]] = {}
    for family, stage, tensor in itertools.product(FAMILIES, (1, 2, 3), (1, 2)):
        config = config_of(family, stage, tensor, **sizes)
        name = f"{family} zero={stage} tp={tensor}"
        figures[name] = run_ranks(REPLICAS * tensor, measure_on_rank, config)[0]
        print(name, file=sys.stderr, flush=True)
    table = Table(title=f"MiB of one rank: {sizes}")
    columns = [*PARTS, "gradients complete", "settled", "step"]
    for column in ("layout", *columns, "most"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for name, found in figures.items():
        row = [found[column] for column in columns]
        table.add_row(name, *(f"{size / 2**20:,.1f}" for size in [*row, found["settled"] + found["step"]]))
    Console(stderr=True, width=150).print(table)
    print(json.dumps({"benchmark": "memory", "machine": machine(), "figures": figures, "bars": []}))


if __name__ == "__main__":
    main()
