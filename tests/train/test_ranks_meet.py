"""Ranks started by hand: what they say when they do not find each other, and when one of them dies."""

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from llmscale.parity.ranks import free_port
from tests.ranks import run_ranks
from tests.tiny_run import write_tiny_run
from tests.train.forked import Command, Finished, run
from tests.train.test_signals import complaint

WORLD = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}


def start(folder: Path, rank: int, port: int, *overrides: str, **variables: object) -> Command:
    place = WORLD | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port} | variables
    return Command("train", "config.yaml", *overrides, cwd=folder, **place)


def wait_for(condition, command: Command, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        assert command.process.is_alive(), command.finish().stderr
        time.sleep(0.01)


def steps(folder: Path) -> int:
    ledger = folder / "run" / "ledger.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def sockets_that_listen(pid: int) -> list[str]:
    """Addresses on which a process listens, as /proc has them: 0100007F is 127.0.0.1."""
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def keys_of_store(port: int) -> list[str]:
    """All keys of a torch store on this machine, as a stranger finds them."""
    import datetime

    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=10))
    return [f"{key}={store.get(key)!r}" for key in store.list_keys()]


def test_ranks_on_loopback_listen_nowhere_else_and_a_killed_one_is_named(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    port = free_port()
    pair = [start(tmp_path, rank, port, "train.steps=1000000", "checkpoint.interval=4") for rank in range(2)]
    wait_for(lambda: steps(tmp_path) > 6 and list((tmp_path / "run/checkpoints").glob("step-*")), pair[0])
    for command in pair:
        listening = sockets_that_listen(command.process.pid)
        assert listening
        assert set(listening) == {"0100007F"}
    assert not any("sequence_length" in entry or "text-" in entry for entry in keys_of_store(port))
    os.kill(pair[1].process.pid, signal.SIGKILL)
    done = pair[0].finish(timeout=25)
    outcome = json.loads((tmp_path / "run/outcome.json").read_text())
    newest = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert done.returncode == 1
    assert outcome["outcome"] == "failed"
    assert outcome["lost"] == {"rank": 1, "node": socket.gethostname(), "signal": None}
    assert (outcome["step"], outcome["checkpoint"]) == (steps(tmp_path) - 1, newest)
    said = [line for line in done.stderr.splitlines() if line.startswith("llmscale:")]
    assert said == [f"llmscale: {outcome['reason']}"]
    assert f"rank 1 on {socket.gethostname()}" in said[0]
    assert "Traceback" not in done.stderr


def wait_in_a_save(rank: int, port: int, folder: str, said: str) -> None:
    """Rank 0 is killed before it makes the folder that rank 1 waits for; nothing of torch tells rank 1."""
    os.environ.update({name: str(value) for name, value in (WORLD | {"RANK": rank, "MASTER_PORT": port}).items()})
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    from llmscale.checkpoint.writer import CheckpointWriter
    from llmscale.distributed import watch
    from llmscale.distributed.process_group import join, read_world

    watch.GRACE_SECONDS = 1.0
    join(read_world("cpu"))
    joined = Path(folder).with_name("joined")
    if rank == 0:
        while not joined.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    joined.touch()
    writer = CheckpointWriter(folder, rank=1, world=2)
    writer.save(1, [])
    writer.wait()


def connect_to_nobody(rank: int, port: int, folder: str, said: str) -> None:
    """Rank 1 meets rank 0, but its group never connects, as behind a network that does not lead there."""
    os.environ.update({name: str(value) for name, value in (WORLD | {"RANK": rank, "MASTER_PORT": port}).items()})
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    import torch.distributed as dist

    from llmscale.distributed import process_group as distributed

    distributed._CONNECT_FACTOR = 0.03
    if rank == 1:
        dist.init_process_group = lambda *_, **__: time.sleep(60)
    distributed.join(distributed.read_world("cpu"))


@pytest.mark.parametrize(
    ("function", "which", "code", "says"),
    [
        (wait_in_a_save, 1, 1, "rank 0 on {} ended"),
        (connect_to_nobody, 0, 2, "rank 0 on {} met the others, but is not"),
    ],
)
def test_ranks_that_torch_would_let_wait_are_ended(tmp_path: Path, function, which: int, code: int, says: str) -> None:
    port, said = free_port(), tmp_path / "said"
    context = multiprocessing.get_context("forkserver")
    pair = [
        context.Process(target=function, args=(rank, port, str(tmp_path / "checkpoints"), f"{said}-{rank}"))
        for rank in range(2)
    ]
    for process in pair:
        process.start()
    pair[which].join(30)
    hangs = pair[which].is_alive()
    for process in pair:
        process.kill()
        process.join()
    assert not hangs
    assert pair[which].exitcode == code
    assert (tmp_path / f"said-{which}").read_text().startswith(f"llmscale: {says.format(socket.gethostname())}")


def look_for_the_run(folders: list[str], seconds: float) -> None:
    from llmscale.distributed.process_group import join, leave, read_world
    from llmscale.train.build import require_shared
    from llmscale.train.run_directory import RunDirectory

    world = read_world("cpu")
    join(world)
    try:
        require_shared(RunDirectory(folders[world.rank]), world, seconds)
    finally:
        leave()


def test_a_run_directory_that_is_not_shared_is_said_to_be_none(tmp_path: Path) -> None:
    """Two machines that each have a folder of that name."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run_ranks(2, look_for_the_run, [str(tmp_path / "one")] * 2, 5.0)
    with pytest.raises(UserError) as caught:
        run_ranks(2, look_for_the_run, [str(tmp_path / name) for name in ("one", "two")], 0.3)
    assert "two is not shared" in str(caught.value)
    assert str(caught.value).count(f" on {socket.gethostname()}") >= 2, str(caught.value)
    assert not list(tmp_path.rglob(".shared*"))


def test_addresses_that_do_not_lead_to_rank_0_end_within_the_deadline(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    port, short = free_port(), {"LLMSCALE_RENDEZVOUS_SECONDS": 2}
    pair = [start(tmp_path, 0, port, **short), start(tmp_path, 1, port, **short, MASTER_ADDR="127.9.9.9")]
    lead, other = (command.finish(timeout=30) for command in pair)
    assert "1 of 2 ranks did not come within 2 s: rank(s) 1; here are rank(s) 0 on" in complaint(lead)
    assert f"did not find rank 0 at MASTER_ADDR 127.9.9.9, port {port}" in complaint(other)
    for done in (lead, other):
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} " in complaint(start(tmp_path, 0, port).finish(timeout=20))


def alone(folder: Path, *arguments: object, **variables: object) -> Finished:
    write_tiny_run(folder)
    return run("train", "config.yaml", *arguments, cwd=folder, **variables)


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        ({"WORLD_SIZE": 3}, "RANK and MASTER_ADDR and MASTER_PORT are not set"),
        ({"RANK": 0}, "WORLD_SIZE and MASTER_ADDR and MASTER_PORT are not set"),
        ({"RANK": 1, "WORLD_SIZE": 3, "MASTER_ADDR": "h"}, "MASTER_PORT is not set"),
        ({"RANK": 1, "WORLD_SIZE": 3, "MASTER_ADDR": "h", "MASTER_PORT": 99999}, "MASTER_PORT is 99999"),
    ],
)
def test_a_variable_that_is_missing_is_named(tmp_path: Path, variables: dict[str, object], missing: str) -> None:
    assert missing in complaint(alone(tmp_path, **variables))
    assert not (tmp_path / "run").exists()


def test_world_size_alone_says_for_how_many_ranks_to_check(tmp_path: Path) -> None:
    assert alone(tmp_path, "--dry-run", "train.global_batch=9", "data.lanes=9", WORLD_SIZE=3).returncode == 0


def test_ranks_on_two_addresses_of_a_machine_and_of_other_launchers_names(tmp_path: Path) -> None:
    """As DeepSpeed's launcher starts them: --local_rank comes first, and LOCAL_SIZE stands for LOCAL_WORLD_SIZE."""
    write_tiny_run(tmp_path)
    port = free_port()
    pair = [
        Command(
            f"--local_rank={rank}",
            *("train", "config.yaml", "train.steps=2"),
            cwd=tmp_path,
            RANK=rank,
            WORLD_SIZE=2,
            LOCAL_RANK=rank,
            LOCAL_SIZE=2,
            MASTER_ADDR="127.0.0.2",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    for command in pair:
        done = command.finish()
        assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["steps"], summary["machine"]["ranks"]) == (2, 2)


def test_a_local_rank_that_contradicts_the_variable_is_refused(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    done = run("train", "--local-rank", 1, "config.yaml", "--dry-run", cwd=tmp_path, LOCAL_RANK=0)
    assert "--local_rank is 1, but LOCAL_RANK is 0" in complaint(done)
