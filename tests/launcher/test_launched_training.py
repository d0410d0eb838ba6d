"""Real training through the launchers that need no service."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.base.records import read_every_record
from llmscale.parity.ranks import free_port
from tests.tiny_run import losses, write_tiny_run
from tests.train import forked

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
LLMSCALE = [sys.executable, "-m", "llmscale"]
DEEPSPEED = [sys.executable, "-m", "deepspeed.launcher.runner"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
TWO = ["--num_processes", "2"]
TRAIN = ["-m", "llmscale", "train"]
LAUNCHERS = {
    "alone": [*LLMSCALE, "train"],
    "local": [*LLMSCALE, "launch", "local", "--nproc", "2"],
    "accelerate": [*LLMSCALE, "launch", "accelerate", "--config-file", str(ROOT / "configs/accelerate/cpu.yaml")],
    "accelerate-one-gpu": [*ACCELERATE, str(ROOT / "configs/accelerate/one_gpu.yaml"), *TRAIN],
    "accelerate-multi-gpu": [*ACCELERATE, str(ROOT / "configs/accelerate/multi_gpu.yaml"), *TWO, *TRAIN],
    "accelerate-deepspeed": [*ACCELERATE, str(ROOT / "configs/accelerate/deepspeed.yaml"), *TWO, *TRAIN],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "llmscale", "train"],
    "deepspeed": [*DEEPSPEED, "--num_gpus", "2", "--module", "llmscale", "train"],
}


def start(launcher: str | list[str], folder: Path, *overrides: str) -> subprocess.Popen:
    """`launcher`: one of `LAUNCHERS`, or a command."""
    command = [*(LAUNCHERS[launcher] if isinstance(launcher, str) else launcher), "config.yaml", *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(launcher: str, folder: Path, *overrides: str) -> tuple[int, str]:
    process = start(launcher, folder, *overrides)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def processes_in(folder: Path) -> list[int]:
    """Every living process that works in `folder`, whoever started it."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "cwd").readlink() == folder:
                found.append(int(process.name))
        except OSError:
            continue
    return found


HARMLESS = "run \"a\" 'b' $(touch harm) `touch harm` ;touch harm; \\ * \n 数据 \U0001f600"
"""A name that a shell would make something of."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of steps 1 to 5 in one process."""
    folder = tmp_path_factory.mktemp("expected")
    write_tiny_run(folder)
    done = forked.run("train", "config.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return [losses(folder / "run")[step] for step in range(1, 6)]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_gives_the_losses_of_one_process_and_values_arrive_unharmed(tmp_path, expected, launcher):
    write_tiny_run(tmp_path)
    code, output = run(launcher, tmp_path, f"run.directory={json.dumps(HARMLESS, ensure_ascii=False)}")
    assert code == 0, output
    directory = tmp_path / HARMLESS
    assert json.loads((directory / "outcome.json").read_text())["outcome"] == "done"
    assert (directory / "summary.json").exists()
    assert not list(tmp_path.rglob("harm"))
    found = losses(directory)
    assert list(found) == list(range(1, 7))
    assert [found[step] for step in range(1, 6)] == pytest.approx(expected, rel=1e-5)
    ranks = 1 if launcher in ("alone", "accelerate-one-gpu") else 2
    assert {row["ranks"] for row in read_every_record(directory / "time.jsonl") if "ranks" in row} == {ranks}
    assert launcher != "local" or (directory / "logs/rank-00001.log").exists()


ELSEWHERE = {
    "accelerate": lambda node, port: [
        *(*ACCELERATE, str(ROOT / "configs/accelerate/multi_node.yaml"), *TWO, "--num_machines", "2"),
        *("--machine_rank", str(node), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port), *TRAIN),
    ],
    "torchrun": lambda node, port: [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", *TRAIN),
    ],
    "by hand": lambda node, port: [
        *("env", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}", "WORLD_SIZE=2", "LOCAL_WORLD_SIZE=1"),
        *(f"RANK={node}", "LOCAL_RANK=0", "LLMSCALE_TOKEN=secret", *LLMSCALE, "train"),
    ],
}
"""What is typed on each of two machines, by its number."""


@pytest.mark.parametrize("launcher", ELSEWHERE)
def test_two_machines_give_the_losses_of_one_process(tmp_path, expected, launcher):
    write_tiny_run(tmp_path)
    port = free_port()
    both = [start(ELSEWHERE[launcher](node, port), tmp_path, "run.directory=both") for node in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    found = losses(tmp_path / "both")
    assert list(found) == list(range(1, 7))
    assert (tmp_path / "both/logs/rank-00001.log").exists()
    assert [found[step] for step in range(1, 6)] == pytest.approx(expected, rel=1e-5)


def test_a_preempted_run_exits_with_75_and_the_same_command_finishes_it(tmp_path):
    write_tiny_run(tmp_path)
    process = start("local", tmp_path, "train.steps=100000")
    wait_until(lambda: len(losses(tmp_path / "run")) >= 5, process)
    process.terminate()
    assert process.wait(timeout=60) == 75, process.communicate()[0]
    process.communicate()
    done = max(losses(tmp_path / "run"))
    assert json.loads((tmp_path / "run/outcome.json").read_text())["outcome"] == "preempted"
    code, output = run("local", tmp_path, f"train.steps={done + 5}", "schedule.name=constant")
    assert code == 2, "another schedule is another run"
    assert output.count("schedule.name") == 1
    assert "Traceback" not in output


def test_nothing_survives_when_the_launcher_is_killed(tmp_path):
    """Loader workers included: they are the ranks' children, and the ranks die without a chance to stop them."""
    write_tiny_run(tmp_path, workers=1)
    process = start("local", tmp_path, "train.steps=100000")
    wait_until(lambda: len(losses(tmp_path / "run")) >= 5, process)
    assert len(processes_in(tmp_path)) >= 5  # launcher, two ranks, two workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 20
    while processes_in(tmp_path):
        assert time.monotonic() < end, processes_in(tmp_path)
        time.sleep(0.1)
    process.communicate()


def test_an_interrupt_ends_all_ranks_without_a_traceback(tmp_path):
    write_tiny_run(tmp_path, workers=1)
    process = start("local", tmp_path, "train.steps=100000")
    wait_until(lambda: len(losses(tmp_path / "run")) >= 5, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert "ended the run" not in output
    assert not processes_in(tmp_path)
