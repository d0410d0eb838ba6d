"""Several ranks on this machine, each a process of its own."""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_pipeline.base.durable import unlinked
from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_records
from data_pipeline.base.terminal import tell
from launcher.environment import STEP_TASKS
from launcher.restarts import Restarts
from llmscale.config import load_config, resolve_directory
from llmscale.distributed.exit_codes import HUNG, PREEMPTED, USER_MISTAKE
from llmscale.distributed.ranks import LAUNCHER
from llmscale.layout import require_legal
from llmscale.train.run_directory import RunDirectory

GRACE_SECONDS = 25.0
"""How long the other ranks may live on after one has failed, so that all are gone within 30 s. Ranks that share a
user's mistake end by themselves; one that waits for the failed rank in a collective would wait for ever."""

HUNG_SECONDS = 5.0
"""As `GRACE_SECONDS`, where ranks have ended since one hangs, after all that can have said where they are."""

SAVE_SECONDS = 120.0
"""How long ranks may take to end after SIGTERM or SIGUSR1, the step and the save that they still make included."""

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass
class _Ranks:
    """The processes, and how they ended."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    """Ranks that did not end with 0, in the order of their end."""
    killed: dict[int, str] = field(default_factory=dict)
    """Ranks that were killed here, and what they had not done in time."""


def launch_local(
    config: str, overrides: tuple[str, ...], nproc: int, save_seconds: float = SAVE_SECONDS, restarts: int = 0
) -> int:
    """Train with `nproc` ranks on this machine: `llmscale train CONFIG OVERRIDES` once per rank.

    Args:
        config: path of the YAML config.
        overrides: `dotted.key=value` strings.
        nproc: number of ranks; may exceed the cores.
        save_seconds: how long ranks may take to save and end after a preemption signal.
        restarts: how often all ranks are started again, from the newest checkpoint, after one has failed.

    Returns:
        The exit code of the whole run, as `run_ranks` defines it; of its last start.

    Raises:
        UserError: the config is wrong, or illegal for `nproc` ranks; no process was started.
    """
    resolved = resolve_directory(load_config(config, overrides))
    require_legal(resolved, nproc)
    run = RunDirectory(resolved.run.directory)
    command = [sys.executable, "-m", "llmscale", "train", config, *overrides]
    allowed = Restarts(run, restarts)
    with _caught_signals() as caught:
        while True:
            code = run_ranks(command, nproc, run.logs, save_seconds=save_seconds, run=run, caught=caught)
            # Whoever has sent a signal wants an end, whatever the ranks made of it.
            if caught or not allowed.again(code):
                return code


def launch_evaluation(arguments: Sequence[str], nproc: int, save_seconds: float = SAVE_SECONDS) -> int:
    """Evaluate with `nproc` ranks on this machine: `llmscale eval ARGUMENTS` once per rank.

    Args:
        arguments: of `llmscale eval`, the checkpoint or run directory first.

    Returns:
        The exit code, as `run_ranks` defines it.

    Raises:
        UserError: the first argument is no folder.
    """
    folder = Path(arguments[0]) if arguments else Path()
    if not arguments or not folder.is_dir():
        given = repr(arguments[0]) if arguments else "nothing"
        raise UserError(f"eval was given {given}, but needs a checkpoint or a run directory first; name one")
    inside = (folder / "checkpoints").is_dir()
    run = folder if inside else folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    command = [sys.executable, "-m", "llmscale", "eval", *arguments]
    return run_ranks(command, nproc, run / "evaluations" / "logs", save_seconds=save_seconds)


def run_ranks(
    command: Sequence[str],
    nproc: int,
    logs: Path,
    grace_seconds: float = GRACE_SECONDS,
    save_seconds: float = SAVE_SECONDS,
    run: RunDirectory | None = None,
    caught: list[int] | None = None,
) -> int:
    """Run `command` once per rank, with torchrun's variables and a secret of this launch, and wait for all.

    Rank 0 keeps this process's stdout and stderr (a terminal stays a terminal); the others append both to
    `logs/rank-00001.log` and so on. SIGTERM, SIGUSR1, SIGHUP and SIGINT are passed on to every rank, and a second
    SIGINT kills them. A preemption signal also lets ranks go on that were stopped, and those that live `save_seconds`
    later are killed. When a rank fails, the others have `grace_seconds` to end before they are killed. The ranks die
    with this process, even when it is killed.

    Args:
        run: of which outcome.json is to say why it failed, where no rank has.
        caught: grows by each signal that comes, where the caller catches them; else they are caught here.

    Returns:
        0 when every rank ended well; 75 when those that did not had all saved after a preemption signal; either also
        where ranks fail when `run` has come to that end already; 2 when any met a user's mistake; 1 after Ctrl-C;
        otherwise the code of the first that failed, or 1 where a signal ended it. A
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
    started = time.time()
    port, token = _free_port(), secrets.token_hex(16)
    ranks = _Ranks()
    with contextlib.ExitStack() as files:
        caught = files.enter_context(_caught_signals()) if caught is None else caught
        try:
            for rank in range(nproc):
                log = files.enter_context(open(_log_path(logs, rank), "ab", opener=unlinked)) if rank else None
                ranks.processes.append(_start(command, _variables(rank, nproc, port, token), log))
            _wait(ranks, caught, grace_seconds, save_seconds)
        finally:
            _kill(ranks)
    if ranks.failures and signal.SIGINT in caught:
        return 1  # whoever pressed Ctrl-C needs no explanation
    return _judge(ranks, logs, run, started)


def _variables(rank: int, nproc: int, port: int, token: str) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // nproc)
    return {
        "OMP_NUM_THREADS": str(threads),
        **{name: value for name, value in os.environ.items() if name != STEP_TASKS},
        "RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LLMSCALE_PORTS": "16",  # it was free a moment ago
        "LLMSCALE_TOKEN": token,
        LAUNCHER: "local",
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


def _wait(ranks: _Ranks, caught: list[int], grace_seconds: float, save_seconds: float) -> None:
    """Pass on what is caught and wait until all have ended."""
    deadline, late = float("inf"), ""
    forwarded = 0
    while True:
        for number in caught[forwarded:]:
            forwarded += 1
            for process in ranks.processes:
                process.send_signal(number)
                if number != signal.SIGINT:
                    process.send_signal(signal.SIGCONT)
            if number != signal.SIGINT and time.monotonic() + save_seconds < deadline:
                deadline = time.monotonic() + save_seconds
                late = f"did not end within {save_seconds:g} s of {signal.Signals(number).name}"
        if _note_failures(ranks):
            hung = ranks.processes[ranks.failures[0]].returncode == HUNG
            patience = min(grace_seconds, HUNG_SECONDS) if hung else grace_seconds
            if time.monotonic() + patience < deadline:
                deadline = time.monotonic() + patience
                late = f"did not end within {patience:g} s of rank {ranks.failures[0]}"
        if all(process.returncode is not None for process in ranks.processes):
            return
        if time.monotonic() > deadline or caught.count(signal.SIGINT) > 1:
            _kill(ranks, late)
        time.sleep(_POLL_SECONDS)


def _note_failures(ranks: _Ranks) -> bool:
    """Whether any rank has failed by now."""
    ended = enumerate(process.poll() for process in ranks.processes)
    ranks.failures += [rank for rank, code in ended if code and rank not in ranks.failures]
    return bool(ranks.failures)


def _kill(ranks: _Ranks, late: str = "") -> None:
    """Kill what still runs: each rank's whole process group, its loader workers included."""
    for rank, process in enumerate(ranks.processes):
        if process.poll() is None:
            ranks.killed[rank] = late
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _judge(ranks: _Ranks, logs: Path, run: RunDirectory | None, started: float) -> int:
    codes = {rank: ranks.processes[rank].returncode for rank in ranks.failures}
    unsaved = [rank for rank in ranks.failures if codes[rank] != PREEMPTED]
    if not unsaved:
        return PREEMPTED if ranks.failures else 0
    mistaken = [rank for rank in unsaved if codes[rank] == USER_MISTAKE]
    if 0 in mistaken:  # rank 0 has said on the terminal what is wrong
        return USER_MISTAKE
    # A rank that was killed from outside ends others, which may be seen to have ended before it.
    died = [rank for rank in unsaved if codes[rank] < 0 and rank not in ranks.killed]
    own = [rank for rank in unsaved if rank not in ranks.killed]
    rank = (mistaken or died or own or unsaved)[0]
    code = codes[rank]
    if code == HUNG and run is not None:
        if 0 not in own:  # which says it itself
            tell(f"{run.outcome().get('reason', 'a rank hung')}; see {_log_path(logs, rank)}")
        return HUNG
    number = -code if code < 0 and rank not in ranks.killed else 0
    if number:
        hint = ": out of memory?" if number == signal.SIGKILL else ""
        how = f"was killed by signal {number} ({_signal_name(number)}{hint})"
    else:
        how = f"exited with code {code}" if code > 0 else f"{ranks.killed[rank]} and was killed"
    where = f"its output is in {_log_path(logs, rank)}" if rank else "its output stands above"
    who = f"rank {rank} of {len(ranks.processes)}"
    earned = None if run is None or mistaken else run.brought_to_end(started)
    if run is not None and earned is not None:
        tell(f"warning: {who} {how} when {run.path} was {run.outcome()['outcome']} already; {where}")
        return earned
    if run is None:
        text = f"{who} {how} and ended the run; {where}"
    else:
        text = _recorded(run, started, rank, number, f"{who} on {socket.gethostname()} {how}", where)
    tell(text)
    return max(code, 1)


def _recorded(run: RunDirectory, started: float, rank: int, number: int, what: str, where: str) -> str:
    """The sentence of a failure with the step and the newest checkpoint of a run, which also goes to its outcome.json
    where that does not say yet why this attempt failed."""
    outcome = run.outcome()
    attempted = outcome.get("outcome") in ("running", "failed") and outcome.get("time", 0) >= started
    if not attempted:
        return f"{what} and ended the run before its first step; {where}"
    step = max((int(row["step"]) for row in read_records(run.ledger)), default=0)
    checkpoint = run.newest_step()
    saved = f"the newest checkpoint is of step {checkpoint}" if checkpoint else "there is no checkpoint yet"
    text = f"{what} after step {step} and ended the run; {saved}"
    if number or outcome["outcome"] == "running":
        lost = {"rank": rank, "node": socket.gethostname(), "signal": _signal_name(number) if number else None}
        details = {"reason": text, "step": step, "checkpoint": checkpoint, "lost": lost}
        with contextlib.suppress(OSError):
            run.record_outcome("failed", attempt=outcome.get("attempt"), **details)
    return f"{text}; {where}"


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
