"""Several ranks on this machine, each a process of its own."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from data_pipeline.disk import unlinked
from data_pipeline.errors import UserError
from llmscale.config import load_config
from llmscale.legality import require_legal

GRACE_SECONDS = 25.0
"""How long the other ranks may live on after one has failed, so that all are gone within 30 s. Ranks that share a
user's mistake end by themselves; one that waits for the failed rank in a collective would wait for ever."""

SAVED = 75
"""Exit code of a rank that saved a checkpoint after a preemption signal."""

USER_ERROR = 2
"""Exit code of a rank that met a user's mistake."""

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def launch_local(config: str, overrides: tuple[str, ...], nproc: int) -> int:
    """Train with `nproc` ranks on this machine: `llmscale train CONFIG OVERRIDES` once per rank.

    Args:
        config: path of the YAML config.
        overrides: `dotted.key=value` strings.
        nproc: number of ranks; may exceed the cores.

    Returns:
        The exit code of the whole run, as `run_ranks` defines it.

    Raises:
        UserError: the config is wrong, or illegal for `nproc` ranks; no process was started.
    """
    resolved = load_config(config, overrides)
    require_legal(resolved, nproc)
    command = [sys.executable, "-m", "llmscale", "train", config, *overrides]
    return run_ranks(command, nproc, Path(resolved.run.directory) / "logs")


def run_ranks(command: Sequence[str], nproc: int, logs: Path, grace_seconds: float = GRACE_SECONDS) -> int:
    """Run `command` once per rank, with torchrun's variables, and wait for all.

    Rank 0 keeps this process's stdout and stderr (a terminal stays a terminal); the others append both to
    `logs/rank-00001.log` and so on. SIGTERM, SIGUSR1, SIGHUP and SIGINT are passed on to every rank, and a second
    SIGINT kills them. When a rank fails, the others have `grace_seconds` to end before they are killed. The ranks die
    with this process, even when it is killed.

    Returns:
        0 when every rank ended well; 75 when those that did not had all saved after a preemption signal; 2 when any met
        a user's mistake; 1 after Ctrl-C; otherwise the code of the first that failed, or 1 where a signal ended it. A
        failure that rank 0 has not explained itself comes with one sentence on stderr: the rank, how it ended, its log.
    """
    try:
        if logs.is_symlink():
            raise UserError(f"{logs} is a symbolic link, which is not followed; remove it")
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create {logs} ({error.strerror}); set run.directory to a folder you may write"
        ) from None
    port = _free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    with _caught_signals() as caught, contextlib.ExitStack() as files:
        try:
            for rank in range(nproc):
                log = files.enter_context(open(_log_path(logs, rank), "ab", opener=unlinked)) if rank else None
                ranks.append(_start(command, _variables(rank, nproc, port), log))
            failures = _wait(ranks, caught, grace_seconds)
        finally:
            _kill(ranks)
    if failures and signal.SIGINT in caught:
        return 1  # whoever pressed Ctrl-C needs no explanation
    return _judge(failures, ranks, logs)


def _variables(rank: int, nproc: int, port: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _start(command: Sequence[str], variables: dict[str, str], log: IO[bytes] | None) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C at the terminal reaches the launcher only, which passes it on once.
    return subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL if log else None,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - the launcher has no threads
    )


def _die_with(parent: int) -> Callable[[], None]:
    """What a rank does before it becomes the command: ask the kernel to kill it when the launcher is gone."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return ask


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """The forwarded signals that arrive within the block, in their order.

    They are collected and not passed on at once, so that a rank that is just being started misses none.
    """
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in _FORWARDED
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN  # as under nohup
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(ranks: list[subprocess.Popen[bytes]], caught: list[int], grace_seconds: float) -> list[int]:
    """Pass on what is caught and wait until all have ended; the ranks that failed, in the order of their end."""
    failures: list[int] = []
    deadline = float("inf")
    forwarded = 0
    while True:
        for number in caught[forwarded:]:
            forwarded += 1
            for process in ranks:
                process.send_signal(number)
        failures += [rank for rank, process in enumerate(ranks) if process.poll() and rank not in failures]
        if failures:
            deadline = min(deadline, time.monotonic() + grace_seconds)
        if all(process.returncode is not None for process in ranks):
            return failures
        if time.monotonic() > deadline or caught.count(signal.SIGINT) > 1:
            _kill(ranks)
        time.sleep(_POLL_SECONDS)


def _kill(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Kill what still runs: each rank's whole process group, its loader workers included."""
    for process in ranks:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _judge(failures: list[int], ranks: list[subprocess.Popen[bytes]], logs: Path) -> int:
    codes = {rank: ranks[rank].returncode for rank in failures}
    unsaved = [rank for rank in failures if codes[rank] != SAVED]
    if not unsaved:
        return SAVED if failures else 0
    mistaken = [rank for rank in unsaved if codes[rank] == USER_ERROR]
    if 0 in mistaken:  # rank 0 has said on the terminal what is wrong
        return USER_ERROR
    rank = (mistaken or unsaved)[0]
    code = codes[rank]
    how = f"exited with code {code}" if code > 0 else f"was killed by signal {-code} ({_signal_name(-code)})"
    where = f"its output is in {_log_path(logs, rank)}" if rank else "its output stands above"
    print(f"rank {rank} of {len(ranks)} {how} and ended the run; {where}", file=sys.stderr, flush=True)
    return max(code, 1)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return "unknown"


def _log_path(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05d}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
