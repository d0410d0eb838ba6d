"""A Slurm job, on its first node: check, start one rank per task, and go back into the queue where that helps.

slurm/train.sbatch becomes `python -m launcher.job SCRIPT [--lead=SECONDS] [--restarts=N] [--chained=1] CONFIG
[key=value ...]`, where SCRIPT is that file as Slurm has kept it.
"""

import contextlib
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from launcher.nodes import Exclusions, faulty_nodes, node_names, sick_nodes
from launcher.restarts import Restarts
from launcher.sbatch_options import gpu_count
from launcher.snapshot import module_command
from launcher.time_limit import require_room, submitted, tasks
from llmscale.config import load_config, resolve_directory
from llmscale.distributed.exit_codes import PREEMPTED, USER_MISTAKE
from llmscale.distributed.meeting import rendezvous_seconds
from llmscale.distributed.wire import TOKEN
from llmscale.layout import require_legal
from llmscale.report.goodput import SUBMITTED
from llmscale.train.run_directory import RunDirectory

STOPPED = 1
"""Exit code of a job that stops going back into the queue."""

_SAYING_SECONDS = 15
"""A rank that does not find the others ends so long after its deadline at most."""

MOST_IDLE_ENDS = 3
"""So many ends with code 75 in a row, without a new checkpoint between them, stop a job."""

_RANK = """
if [ ! -x "$0" ]; then
  [ "$SLURM_LOCALID" != 0 ] ||
    echo "llmscale: no $0 on $(hostname); name in slurm/cluster.env an environment that every node has" >&2
  exit 2
fi
exec "$0" "$@"
"""
"""What srun starts: the interpreter, or a sentence instead of `execve(): No such file or directory`."""


def run_job(script: Path, arguments: Sequence[str]) -> int:
    """Check, train with one rank per task, and requeue the job after a preemption signal.

    Args:
        script: the batch script, for its `#SBATCH --signal` line.
        arguments: `--lead=SECONDS` where somebody knows better; `--restarts=N`, how often ranks that failed are
            started again; `--chained=1` where another job follows and none is requeued; the config, overrides.

    Returns:
        The highest exit code of the ranks; 1 where a job that came to nothing three times in a row stops.

    Raises:
        UserError: the config is wrong or illegal for this number of ranks, or the time limit or the CPUs do not do;
            nothing was started.
    """
    options, arguments = _options(arguments)
    lead = options.get("lead")
    if not os.environ.get("SLURM_JOB_ID"):
        raise UserError(f"{script} is a batch script of Slurm, but SLURM_JOB_ID is not set; submit it with sbatch")
    if os.environ.get("SLURM_HET_SIZE"):
        raise UserError(
            f"the job is heterogeneous, of {os.environ['SLURM_HET_SIZE']} components, but ranks would start in one"
            " alone; submit a job of one component, without `:`"
        )
    if not arguments:
        raise UserError("no CONFIG was given; submit with `sbatch slurm/train.sbatch CONFIG [key=value ...]`")
    config, *overrides = arguments
    resolved = resolve_directory(load_config(config, overrides))
    job = os.environ["SLURM_JOB_ID"]
    ranks, words = layout(os.environ, on_gpu=resolved.run.device != "cpu", tasks=tasks(job))
    require_legal(resolved, ranks)
    require_room(job, script, os.environ, lead)
    run = RunDirectory(resolved.run.directory)
    before = _checkpoints(run)
    _introduce(job, ranks, run)
    exclusions = Exclusions(run, job, resolved.recovery.node_exclusions)
    nodes = node_names(dict(os.environ)) if resolved.recovery.node_exclusions else []
    early: list[int] = []
    with _noted(early):
        sick = sick_nodes(run, nodes, _gpus_on_node(os.environ, resolved.run.device)) if nodes else {}
    if early:  # before there were ranks to save anything
        ends = signal.SIGTERM in early or options.get("chained")
        return PREEMPTED if ends else _requeue(job, run, progress=False)
    if sick:
        return _without(sick, exclusions, chained=bool(options.get("chained")))
    train = [*module_command("llmscale"), "train", *arguments]
    allowed = Restarts(run, options.get("restarts", 0))
    while True:
        started = time.time()
        code, caught = _start_ranks([*words, "bash", "-c", _RANK, *train], submitted(job))
        earned = run.brought_to_end(started)
        if earned is not None and code not in (earned, USER_MISTAKE):
            _say(f"warning: a rank ended with code {code} when {run.path} was {run.outcome()['outcome']} already")
            code = earned
        # Whoever has sent a signal wants an end, whatever the ranks made of it.
        if caught or not allowed.again(code):
            break
    if code != PREEMPTED or signal.SIGTERM in caught or options.get("chained"):
        return code
    if faulty := faulty_nodes(run):
        return PREEMPTED if exclusions.requeue_without(faulty) else STOPPED
    return _requeue(job, run, progress=bool(_checkpoints(run) - before))


def _gpus_on_node(environment: Mapping[str, str], device: str) -> int:
    """How many GPUs the job has on each node; 0 where its ranks will use none."""
    return 0 if device == "cpu" else int(environment.get("SLURM_GPUS_ON_NODE") or 0)


def _without(sick: dict[str, str], exclusions: Exclusions, chained: bool) -> int:
    """The exit code of a job some of whose nodes are not fit, which goes back into the queue unless it may not."""
    if chained:
        for node, why in sick.items():
            _say(f"node {node} is not fit: {why}; the next job of the chain may be given another one")
        return STOPPED
    return PREEMPTED if exclusions.requeue_without(sick) else STOPPED


def _options(arguments: Sequence[str]) -> tuple[dict[str, int], Sequence[str]]:
    """Numbers of this module's own options, which come first, and what follows them."""
    options: dict[str, int] = {}
    while arguments and (match := re.fullmatch(r"--(lead|restarts|chained)=(\d+)", arguments[0])):
        options[match[1]], arguments = int(match[2]), arguments[1:]
    return options, arguments


def _introduce(job: str, ranks: int, run: RunDirectory) -> None:
    """A line before the ranks' slow imports: whose log this is, and what is going to run."""
    nodes, restart = os.environ.get("SLURM_JOB_NODELIST", "?"), os.environ.get("SLURM_RESTART_COUNT", "0")
    checkpoint = run.newest_step()
    place = f"continues {run.path} from step {checkpoint}" if checkpoint else f"starts {run.path}"
    print(f"llmscale: job {job} (requeued {restart} times) {place} with {ranks} rank(s) on {nodes}", flush=True)


def layout(environment: Mapping[str, str], on_gpu: bool, tasks: int | None = None) -> tuple[int, list[str]]:
    """Number of ranks, and what srun must be told for it: one per GPU or per node, where nobody has said.

    Args:
        tasks: of the job, as Slurm knows them now.

    Raises:
        UserError: the GPUs are not the same number on each node, or there are too few CPUs for the ranks.
    """
    if environment.get("SLURM_NTASKS", ""):
        return _given_layout(environment, tasks)
    nodes = int(environment["SLURM_JOB_NUM_NODES"])
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0) if on_gpu else 0
    per_node = int(environment.get("SLURM_NTASKS_PER_NODE") or gpus or 1)
    total = gpu_count(environment["SLURM_GPUS"]) if environment.get("SLURM_GPUS") else 0
    if gpus and total and total != gpus * nodes:
        raise UserError(
            f"the job has {total} GPUs, of which {gpus} on the first of {nodes} nodes; give sbatch --gpus-per-node, or"
            " --ntasks for the number of ranks"
        )
    cpus = min(int(count) for count in re.findall(r"(?:^|,)(\d+)", environment.get("SLURM_JOB_CPUS_PER_NODE", "1")))
    needed = per_node * int(environment.get("SLURM_CPUS_PER_TASK") or 1)
    if needed > cpus:
        raise UserError(
            f"one rank for each of {gpus} GPUs takes {needed} CPUs of a node, but the job has {cpus}; give sbatch"
            f" --ntasks-per-node={per_node}"
        )
    print(f"llmscale: {per_node} rank(s) on each of {nodes} node(s), since no --ntasks-per-node was given", flush=True)
    return nodes * per_node, [f"--ntasks={nodes * per_node}", f"--ntasks-per-node={per_node}"]


def _given_layout(environment: Mapping[str, str], tasks: int | None) -> tuple[int, list[str]]:
    """As `layout`, where the number of ranks was given to sbatch. What that has put into the environment stays as it
    was when somebody changes the job that is queued, and srun would be refused."""
    given, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_JOB_NUM_NODES") or 1)
    per_node = int(environment.get("SLURM_NTASKS_PER_NODE") or 0)
    ranks = given if tasks is None else tasks
    ranks = min(ranks, per_node * nodes) if per_node else ranks
    listed = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
    cpus = sum(int(count) * int(repeated or 1) for count, repeated in listed)
    needed = ranks * int(environment.get("SLURM_CPUS_PER_TASK") or 1)
    if cpus and needed > cpus and not environment.get("SLURM_OVERCOMMIT"):
        raise UserError(
            f"{ranks} rank(s) take {needed} CPUs, but the job has been given {cpus}; change both, by `scontrol update"
            f" JobId={environment['SLURM_JOB_ID']} NumTasks=... NumCPUs=...`, or submit it again"
        )
    if ranks == given:
        return ranks, []
    print(
        f"llmscale: {ranks} rank(s) on {nodes} node(s), since the job was submitted with {given} and changed",
        flush=True,
    )
    return ranks, [f"--ntasks={ranks}"]


def _start_ranks(command: Sequence[str], since: float | None = None) -> tuple[int, list[int]]:
    """srun's exit code, and the signals that came meanwhile. `since`: when the job was submitted.

    scancel and preemption send TERM to this process too: it must outlive the ranks, and must not bring a cancelled job
    back. USR1 comes here alone where sbatch was told `--signal=B:USR1`, and is passed on.
    """
    # When the first rank ends, the others have the time that ranks wait for each other, and some more, to end by
    # themselves before they are killed. Killing them at once (--kill-on-bad-exit) would cut off ranks that are about to
    # give the same exit code, and change it to 143.
    patience = str(math.ceil(rendezvous_seconds()) + _SAYING_SECONDS)
    environment = {"SLURM_WAIT": patience, TOKEN: secrets.token_hex(16), **os.environ, "SLURM_KILL_BAD_EXIT": "0"}
    if since is not None:
        environment[SUBMITTED] = str(since)
    # `sbatch --export=NONE` is about what the job gets; srun would read it as what the ranks get.
    environment["SLURM_EXPORT_ENV"] = "ALL"
    if "SLURM_CPUS_PER_TASK" in environment:  # which srun does not take over from sbatch by itself
        environment["SRUN_CPUS_PER_TASK"] = environment["SLURM_CPUS_PER_TASK"]
    caught: list[int] = []
    srun: list[subprocess.Popen[bytes]] = []
    with _noted(caught, srun):
        try:
            srun.append(subprocess.Popen(["srun", *command], env=environment))
            code = srun[0].wait()
        except FileNotFoundError:
            raise UserError(
                "srun is not on the PATH of the job; add Slurm's commands to it in slurm/cluster.env"
            ) from None
    return 128 - code if code < 0 else code, caught


@contextlib.contextmanager
def _noted(caught: list[int], srun: Sequence[subprocess.Popen[bytes]] = ()) -> Iterator[None]:
    """Within the block, TERM and USR1 end nothing but are noted; USR1 is passed on to `srun`, once there is one."""

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if number == signal.SIGUSR1 and srun:
            srun[0].send_signal(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checkpoints(run: RunDirectory) -> set[str]:
    """Names of the run's checkpoints. A new one is a step that this start has made."""
    return {path.name for path in run.checkpoints.glob("step-*") if path.name[5:].isdecimal()}


def _requeue(job: str, run: RunDirectory, progress: bool) -> int:
    """Put the job back into the queue, unless that has come to nothing `MOST_IDLE_ENDS` times in a row."""
    record = run.logs / "requeues.json"
    idle = 0 if progress else _idle_ends(record, job) + 1
    _record(record, {"job": job, "idle_ends": idle})
    if idle >= MOST_IDLE_ENDS:
        newest = max(_checkpoints(run), default="none")
        reason = (
            f"job {job} ended with code {PREEMPTED} {idle} times in a row without a new step (newest checkpoint:"
            f" {newest}), so it does not go back into the queue; give it more time (sbatch --time), and submit it again"
        )
        _say(reason)
        if run.config_file.exists():  # else it is no run yet
            run.record_outcome("failed", attempt=run.outcome().get("attempt", 0), reason=reason)
        return STOPPED
    result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = result.stderr.strip() or f"scontrol requeue exited with {result.returncode}"
        _say(f"job {job} has saved, but cannot go back into the queue ({reason}); submit it again to continue")
    return PREEMPTED


def _idle_ends(record: Path, job: str) -> int:
    """Earlier ends of this job in a row that brought no step; 0 where the record is another job's, or none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state: Any = json.loads(record.read_text(encoding="utf-8"))
        if state["job"] == job:
            return int(state["idle_ends"])
    return 0


def _record(record: Path, state: dict[str, Any]) -> None:
    """Replace the record atomically.

    Raises:
        UserError: it cannot be written. Without it the job might go on for ever.
    """
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        write_json(record, state)
    except OSError as error:
        raise UserError(
            f"cannot write {record} ({error.strerror}), so that the job does not go back into the queue; make room or"
            " access for it, and submit again"
        ) from None


def _say(text: str) -> None:
    tell(f"llmscale: {text}")


def main() -> None:
    """Entry point: `python -m launcher.job SCRIPT [OPTIONS] CONFIG [key=value ...]`."""
    try:
        sys.exit(run_job(Path(sys.argv[1]), sys.argv[2:]))
    except UserError as error:
        _say(str(error))
        sys.exit(USER_MISTAKE)


if __name__ == "__main__":
    main()
