"""A processor that computes wrongly once: found, and the rank that did it named."""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.base.records import read_records
from llmscale.engine.fingerprints import fingerprint
from llmscale.parity.ranks import free_port
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, run
from tests.train.runs import metrics

SETTINGS = ("config.yaml", "train.steps=12", "checkpoint.interval=4", "recovery.check_every=3", "train.global_batch=8")


def flip_one_bit(rank: int, module: str, step: int, what: str = "output") -> None:
    """On one rank, the first time from a step on that a module runs outside of training, one bit of one number of its
    output, of the gradient of that, or of its weight, is flipped, once in the life of the process: its lowest one; of
    the gradient, whose lowest may be lost in the sums that follow, the tenth."""
    if int(os.environ.get("RANK", "0")) != rank:
        return
    from llmscale.train import loop

    look, planted = loop.look_twice, []

    def flip(value: torch.Tensor) -> torch.Tensor:
        if what == "weight" and planted:
            return value
        words = value.detach().clone().contiguous()
        middle = words.numel() // 2
        as_integers = {4: torch.int32, 2: torch.int16}[words.element_size()]
        words.view(-1)[middle : middle + 1].view(as_integers).bitwise_xor_(512 if what == "gradient" else 1)
        planted.append(step)
        return words

    def forward_hook(part: Any, _: Any, output: torch.Tensor) -> torch.Tensor | None:
        if planted:
            return None
        if what == "gradient":
            planted.append(step)
            output.register_hook(flip)
            return None
        return output + (flip(output) - output).detach() if output.requires_grad else flip(output)

    def watched(engine: Any, batch: Any, number: int) -> None:
        hook = None
        if number == step:
            parts = dict(engine._engine.module.named_modules())
            part = next(part for name, part in parts.items() if name.endswith(module))
            if what == "weight":
                hook = part.weight.register_hook(flip)
            else:
                hook = part.register_forward_hook(forward_hook, prepend=True)
        try:
            look(engine, batch, number)
        finally:
            if hook is not None:
                hook.remove()

    loop.look_twice = watched


def start(folder: Path, ranks: int, *settings: object, prepare: Any = None) -> list[Any]:
    place = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    commands = [
        Command("train", *SETTINGS, *settings, cwd=folder, prepare=prepare, RANK=rank, LOCAL_RANK=rank, **place)
        for rank in range(ranks)
    ]
    return [command.finish(300) for command in commands]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_any_single_bit_changes_a_fingerprint(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    value = (torch.randn(3, 5, generator=generator) * 9).to(dtype)
    before, size = int(fingerprint(value)), value.element_size()
    raw = value.view(torch.uint8)
    for place in range(raw.numel()):
        for bit in range(8):
            raw.view(-1)[place] ^= 1 << bit
            assert int(fingerprint(value)) != before, (place, bit, size)
            raw.view(-1)[place] ^= 1 << bit
    assert int(fingerprint(value)) == before
    assert int(fingerprint(value.T.contiguous().T)) == before


def test_looking_changes_nothing(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    for directory, more in (("run", ()), ("without", ("recovery.check_every=0",))):
        done = run("train", *SETTINGS, *more, "model.dropout=0.1", f"run.directory={directory}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run") == metrics(tmp_path / "without")
    rows = read_records(tmp_path / "run/metrics.jsonl")
    assert [row["computed_twice"] for row in rows if "computed_twice" in row][-1] == 4


@pytest.mark.parametrize("what", ["output", "gradient", "weight"])
def test_one_flipped_bit_is_found(tmp_path: Path, what: str) -> None:
    write_tiny_run(tmp_path)
    module = "blocks.1.attention.output"
    plant = functools.partial(flip_one_bit, 0, module, 6, what)
    done = run("train", *SETTINGS, cwd=tmp_path, prepare=plant)
    print(done.stderr)
    assert done.returncode == 75
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())
    assert (outcome["outcome"], outcome["step"], outcome["saved"]) == ("failed", 5, 4)
    assert [fault["rank"] for fault in outcome["faulty"]] == [0]
    where = {"output": module, "gradient": f"the gradient at {module}", "weight": f"the gradient of {module}.weight"}
    assert re.sub(r"(^| )model\.", r"\1", outcome["faulty"][0]["where"]) == where[what]
    [row] = [row for row in read_records(tmp_path / "run/metrics.jsonl") if "silent_error" in row]
    assert (row["step"], row["silent_error"]) == (6, outcome["faulty"])
    # The same command goes on, as if nothing had been.
    done = run("train", *SETTINGS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    clean = run("train", *SETTINGS, "run.directory=clean", cwd=tmp_path)
    assert clean.returncode == 0
    assert metrics(tmp_path / "run") == metrics(tmp_path / "clean")


LAYOUTS = [
    ("engine.zero_stage=1",),
    ("engine.zero_stage=2", "engine.dtype=bf16"),
    ("engine.zero_stage=3",),
    ("parallel.tensor=2",),
    ("parallel.sequence=2",),
    ("parallel.pipeline=2",),
]
CASES = [("output", layout) for layout in LAYOUTS] + [
    (what, layout)
    for what in ("gradient", "weight")
    for layout in (("engine.zero_stage=3", "engine.activation_checkpointing=block"), ("parallel.pipeline=2",))
]
CASES += [
    ("output", ("model.experts={count: 4}", "parallel.expert=2")),
    ("weight", ("engine.zero_stage=3", "engine.compile=true")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "layout"), CASES, ids=lambda case: case if isinstance(case, str) else " ".join(case))
@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_is_named(tmp_path: Path, what: str, layout: tuple[str, ...], rank: int) -> None:
    write_tiny_run(tmp_path)
    plant = functools.partial(flip_one_bit, rank, "feed_forward.up", 3, what)
    done = start(tmp_path, 2, *layout, "train.steps=3", prepare=plant)
    assert [each.returncode for each in done] == [75, 75], done
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())
    assert [fault["rank"] for fault in outcome["faulty"]] == [rank], outcome
    assert "Traceback" not in done[0].stderr + done[1].stderr
    assert f"rank {rank} on " in done[0].stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("engine.zero_stage=3", "train.micro_batch=2"),
        ("engine.zero_stage=3", "engine.compile=true"),
        ("parallel.pipeline=2", "engine.dtype=bf16", "model.dropout=0.1"),
    ],
    ids=" ".join,
)
def test_looking_changes_nothing_for_several_ranks(tmp_path: Path, layout: tuple[str, ...]) -> None:
    write_tiny_run(tmp_path)
    for directory, every in (("run", 1), ("without", 0)):
        more = (f"recovery.check_every={every}", f"run.directory={directory}", "train.steps=4")
        done = start(tmp_path, 2, *layout, *more)
        assert [each.returncode for each in done] == [0, 0], done
    assert metrics(tmp_path / "run") == metrics(tmp_path / "without")
