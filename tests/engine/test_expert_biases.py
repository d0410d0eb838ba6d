"""The biases of experts, a stack of vectors in one tensor, are treated as vectors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from llmscale.checkpoint import newest_intact
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.distributed.process_group import gather_objects, join, leave, read_world
from llmscale.engine.optimizers import build_optimizer
from llmscale.slices.fragment import Fragment
from llmscale.slices.tensor_slice import TensorSlice
from llmscale.train.resume import restore
from tests.engine.cases import Named, build, case_config, one_step, open_engine
from tests.ranks import run_ranks

EXPERTS = {"model__experts__count": 4, "model__hidden_size": 48, "model__ffn_size": 64}
LR, DECAY = 0.05, 0.4


def reference(name: str, parameters: list[torch.Tensor], decay: float) -> torch.optim.Optimizer:
    if name == "adafactor":
        return Adafactor(parameters, LR, relative_step=False, scale_parameter=False, warmup_init=False)
    return torch.optim.AdamW(parameters, LR, betas=(0.9, 0.95), weight_decay=decay)


def random_biases(named: Named) -> Named:
    """Biases start at zero, of which decay would show nothing."""
    with torch.no_grad():
        for name, parameter in named:
            if name.endswith("bias"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return named


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_each_expert_has_a_bias_like_any_layer(name: str) -> None:
    """Three updates of the stacked tensors, beside updates of every vector by itself without decay."""
    options: dict[str, Any] = {"optimizer__scale_parameter": "false"} if name == "adafactor" else {}
    options["optimizer__weight_decay"] = 0 if name == "adafactor" else DECAY
    config = case_config(optimizer__name=name, optimizer__lr=LR, **EXPERTS, **options)
    named = random_biases(list(build(config).named_parameters()))
    biases = [parameter for key, parameter in named if key.endswith("bias") and parameter.dim() == 2]
    assert len(biases) == 4, "two layers, up and down"
    alone = [[torch.nn.Parameter(vector.detach().clone()) for vector in stack] for stack in biases]
    optimizer = build_optimizer(named, config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = LR
    # Adafactor bounds the size of a whole tensor's update, so its stack is compared as one long vector.
    if name == "adafactor":
        alone = [[torch.nn.Parameter(stack.detach().flatten().clone())] for stack in biases]
    other = reference(name, [vector for stack in alone for vector in stack], decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for _, parameter in named:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * torch.logspace(
                -3, 1, parameter.shape[-1]
            )
        for stack, vectors in zip(biases, alone, strict=True):
            for vector, gradient in zip(vectors, stack.grad.view(len(vectors), -1).clone(), strict=True):
                vector.grad = gradient
        optimizer.step()
        other.step()
    for stack, vectors in zip(biases, alone, strict=True):
        wanted = torch.stack([vector.detach() for vector in vectors]).view_as(stack)
        torch.testing.assert_close(stack.detach(), wanted, rtol=1e-5, atol=1e-6)


def with_statistics(fragment: Fragment) -> list[Fragment]:
    """The fragment; instead of second moments of stacked biases those of their rows and columns, as once written."""
    if fragment.kind != "exp_avg_sq" or len(fragment.slice.shape) != 2:
        return [fragment]
    found = []
    for kind, size in zip(("exp_avg_sq_row", "exp_avg_sq_col"), fragment.slice.shape, strict=True):
        values = torch.rand(size, generator=torch.Generator().manual_seed(size)) + 0.1
        found.append(Fragment(fragment.name, kind, TensorSlice.whole((size,)), values, fragment.slice.shape))
    return found if fragment.slice.start == 0 else []


def resume_from_statistics(folder: Path) -> list[tuple[str, int, Any]]:
    """Save with statistics of the biases, resume and train on; this rank's second moments right after the resume."""
    join(read_world("cpu"))
    config = case_config(optimizer__name="adafactor", engine__zero_stage=1, **EXPERTS)
    engine, grid = open_engine(config)
    one_step(engine, grid, 0)
    writer = CheckpointWriter(folder, rank=grid.rank, world=grid.world_size)
    extra = {"samples": 0, "progress": {"tokens": 0, "skipped_steps": 0, "seconds": 0.0}, "optimizer": engine.counters}
    writer.save(1, (other for fragment in engine.state() for other in with_statistics(fragment)), extra)
    writer.wait()
    gather_objects(None)
    engine, grid = open_engine(config)
    restore(engine, newest_intact(folder))
    moments = [f for f in engine.state() if f.kind == "exp_avg_sq" and len(f.slice.shape) == 2]
    found = [(f.name, f.slice.start, f.tensor.numpy().copy()) for f in moments]
    one_step(engine, grid, 1)
    leave()
    return found


def test_a_checkpoint_with_statistics_of_biases_is_resumed(tmp_path: Path) -> None:
    found = [part for rank in run_ranks(2, resume_from_statistics, tmp_path) for part in rank]
    assert len({name for name, *_ in found}) == 4
    checkpoint = newest_intact(tmp_path)
    for name, start, moments in found:
        rows, columns = (checkpoint.full(name, f"exp_avg_sq_{kind}") for kind in ("row", "col"))
        wanted = (torch.outer(rows, columns) / rows.mean()).flatten()[start : start + len(moments)]
        torch.testing.assert_close(torch.from_numpy(moments), wanted)
