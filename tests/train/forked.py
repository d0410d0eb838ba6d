"""The command line in a process of its own that does not have to import torch and DeepSpeed again."""

import contextlib
import io
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmscale.parity.ranks import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


@dataclass(frozen=True)
class Finished:
    """What a command gave."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """`llmscale` with some arguments, started."""

    def __init__(
        self,
        *arguments: object,
        cwd: Path,
        largest_file: int = resource.RLIM_INFINITY,
        prepare: Callable[[], object] | None = None,
        **environment: object,
    ) -> None:
        """`largest_file`: bytes beyond which a write fails; `prepare`: called in the process before the command;
        `environment`: variables to set."""
        self._output = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._output]
        settings = {"DS_ACCELERATOR": "cpu", **environment}
        self.process = _context.Process(
            target=_main, args=([*map(str, arguments)], str(cwd), names, settings, largest_file, prepare)
        )
        self.process.start()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def finish(self, timeout: float = 120) -> Finished:
        """Wait for it; one that takes longer than `timeout` seconds is killed and fails the test."""
        self.process.join(timeout)
        if hung := self.process.is_alive():
            self.process.kill()
            self.process.join()
        stdout, stderr = (Path(file.name).read_text() for file in self._output)
        assert not hung, f"still running after {timeout} s\n{stdout}\n{stderr}"
        return Finished(self.process.exitcode, stdout, stderr)


def run(*arguments: object, cwd: Path, **settings: Any) -> Finished:
    """Run the command line to its end; `settings` as `Command` takes them."""
    return Command(*arguments, cwd=cwd, **settings).finish()


def run_on_ranks(ranks: int, *arguments: object, cwd: Path, timeout: float = 120) -> Finished:
    """What `llmscale launch local --nproc ranks` runs, without the launcher; what the first rank that failed gave, or
    rank 0."""
    place = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    commands = [Command(*arguments, cwd=cwd, **place, RANK=rank, LOCAL_RANK=rank) for rank in range(ranks)]
    done = [command.finish(timeout) for command in commands]
    return next((each for each in done if each.returncode), done[0])


def run_many(commands: list[tuple[object, ...]], cwd: Path, timeout: float = 300) -> list[Finished]:
    """Run several commands one after the other in one process, which takes a tenth of the time of a process each."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_many, args=([[*map(str, each)] for each in commands], str(cwd), sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(timeout), f"still running after {timeout} s"
        return receiver.recv()
    finally:
        process.kill()
        process.join()


def _many(commands: list[list[str]], folder: str, sender: Any) -> None:
    os.chdir(folder)
    os.environ["DS_ACCELERATOR"] = "cpu"
    from llmscale.cli import cli

    done = []
    for arguments in commands:
        streams = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            try:
                code = cli.main(arguments, prog_name="llmscale", standalone_mode=False) or 0
            except SystemExit as error:
                code = error.code
            except Exception:
                traceback.print_exc()
                code = 1
        done.append(Finished(code, *(stream.getvalue() for stream in streams)))
    sender.send(done)


def _main(
    arguments: list[str],
    folder: str,
    output: list[str],
    environment: dict[str, Any],
    largest_file: int,
    prepare: Callable[[], object] | None,
) -> None:
    os.chdir(folder)
    os.environ.update({name: str(value) for name, value in environment.items()})
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    # As at a terminal; tests that a shell started in the background inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.argv[1:] = arguments
    if prepare is not None:
        prepare()
    from llmscale.cli import main

    main()
