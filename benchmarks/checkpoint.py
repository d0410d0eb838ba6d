"""Checkpoints of 100 million parameters: how long a save holds training up, how large it is, how fast it loads.

    python -m benchmarks.checkpoint [--parameters 100] [--rounds 5] [--folder FOLDER]

In each round, in the same process and on the same disk: `torch.save` of weights and both moments of Adam, the call of
`CheckpointWriter.save` with the same state (after which training goes on while a thread writes), the files of the
checkpoint read raw, and every tensor of it loaded. `stall` is what the call takes as a share of `torch.save`. The first
save of a run comes after its host copy was allocated, as a run does it during its first steps; `allocate` is how long
that takes. Reading is from the page cache on both sides.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.harness import Ratio, bar, report
from llmscale.checkpoint import Checkpoint
from llmscale.checkpoint.store import step_name
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.config.model import ModelConfig
from llmscale.model import skeleton
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice

KINDS = ("weight", "exp_avg", "exp_avg_sq")
VOCABULARY = 20000

State = dict[str, dict[str, torch.Tensor]]


def make_state(millions: float) -> State:
    """Weights and moments of a decoder of about so many parameters, by kind and name."""
    config = ModelConfig(layers=12, hidden_size=768, heads=12, max_positions=1024)
    whole = [(name, tuple(each.shape)) for name, each in skeleton(config, VOCABULARY).named_parameters()]
    shapes = dict(whole)
    number = 0
    while sum(map(_size, shapes.values())) < millions * 1e6:
        shapes[f"more.{number}.weight"] = (768, 3072)
        number += 1
    while len(shapes) > 1 and sum(map(_size, shapes.values())) > millions * 1.03e6:
        shapes.popitem()
    return {kind: {name: torch.randn(shape) for name, shape in shapes.items()} for kind in KINDS}


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def fragments(state: State) -> Iterator[Fragment]:
    """The state as one rank gives it to a writer."""
    for kind, tensors in state.items():
        for name, tensor in tensors.items():
            yield Fragment(name, kind, TensorSlice.whole(tensor.shape), tensor.reshape(-1))


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def read_raw(folder: Path) -> None:
    """Every byte of the files with tensors, into memory that is made for it."""
    for path in sorted(folder.glob("rank-*.safetensors")):
        path.read_bytes()


def load(folder: Path) -> None:
    """Every tensor, as a run that resumes asks for them."""
    with Checkpoint(folder) as checkpoint:
        for name in checkpoint.names:
            for kind in checkpoint.kinds(name):
                checkpoint.full(name, kind)


def of_rounds(values: list[float], others: list[float]) -> Ratio:
    """The median of the rounds' ratios, and the least and the most of them."""
    ratios = [a / b for a, b in zip(values, others, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=100.0, help="In millions.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="On the disk to measure; a temporary one when not given.")
    options = parser.parse_args()
    state = make_state(options.parameters)
    numbers = sum(tensor.numel() for tensors in state.values() for tensor in tensors.values())
    times: dict[str, list[float]] = {name: [] for name in ("torch_save", "save", "write", "raw", "load", "verify")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        writer = CheckpointWriter(folder / "checkpoints")
        allocate = seconds(lambda: writer.prepare(fragments(state)).join())
        first = seconds(lambda: writer.save(1, fragments(state), {"samples": 0}))
        writer.wait()
        for step in range(2, 2 + options.rounds):
            times["torch_save"].append(seconds(lambda: torch.save(state, folder / "state.pt")))
            times["save"].append(seconds(lambda step=step: writer.save(step, fragments(state), {"samples": 0})))
            times["write"].append(seconds(writer.wait))
            saved = folder / "checkpoints" / step_name(step)
            read_raw(saved)  # into the page cache
            times["raw"].append(seconds(lambda saved=saved: read_raw(saved)))
            times["load"].append(seconds(lambda saved=saved: load(saved)))
            times["verify"].append(seconds(Checkpoint(saved).verify))
        size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
        shutil.rmtree(folder / "checkpoints")
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    figures = {"parameters": numbers // len(KINDS), "rounds": options.rounds, "seconds": medians}
    figures |= {"allocate_seconds": round(allocate, 4), "first_save_seconds": round(first, 4)}
    figures |= {"state_bytes": numbers * 4, "checkpoint_bytes": size}
    exact = size / (numbers * 4)
    whole = statistics.median(times["torch_save"])
    bars = [
        bar("stall: first save / torch.save", Ratio(*[first / whole] * 3), at_most=0.2),
        bar("stall: save / torch.save", of_rounds(times["save"], times["torch_save"]), at_most=0.2),
        bar("bytes: checkpoint / state", Ratio(exact, exact, exact), at_most=1.02),
        bar("load: raw reading / loading", of_rounds(times["raw"], times["load"]), at_least=0.7),
    ]
    report("checkpoint", figures, bars)


if __name__ == "__main__":
    main()
