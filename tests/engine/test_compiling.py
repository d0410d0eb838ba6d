"""Processes that compile nothing do not import torch's compiler, and those that compile find it as torch has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_run import write_tiny_run

PROGRAM = """
import sys
import torch
from tests.engine.cases import case_config, train_on_rank

settings = {{"engine__zero_stage": {stage}, "optimizer__name": "{optimizer}"}}
experts = {{"model__experts": "{{count: 4}}", "model__hidden_size": 48, "model__ffn_size": 64}}
runs = train_on_rank([case_config(**settings), case_config(**settings, **experts)])
assert [len(figures) for figures in runs] == [5, 5]
assert "torch._dynamo" not in sys.modules and "torch._inductor" not in sys.modules

entered, graphs = [], []
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([weight], lr=0.5)

@torch.compiler.disable
def apart(x):
    entered.append(torch.compiler.is_compiling())
    return x + 1

def count(graph, inputs):
    graphs.append(graph)
    return graph.forward

@torch.compile(backend=count)
def step(x):
    optimizer.zero_grad()
    return apart(x * weight) * 3

step(torch.ones(3)).sum().backward()
assert weight.grad.tolist() == [3.0] * 3
optimizer.step()
assert weight.tolist() == [-0.5] * 3
step(torch.ones(3))
assert weight.grad is None
assert entered == [False, False] and len(graphs) >= 2, (entered, len(graphs))
"""


@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [(1, "adamw"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(3, "sgd"), (2, "adafactor")])],
)
def test_training_imports_no_compiler_and_leaves_it_as_it_is(stage: int, optimizer: str) -> None:
    program = PROGRAM.format(stage=stage, optimizer=optimizer)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "launch local --nproc 2"])
def test_a_whole_run_imports_no_compiler(command: str, tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "llmscale", *command.split(), "config.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "deepspeed.runtime.engine" in done.stderr
    assert "torch._dynamo" not in done.stderr
