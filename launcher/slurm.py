"""Submitting a run to Slurm."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from launcher.environment import RANK_VARIABLES
from launcher.forecast import warnings
from launcher.sbatch_options import given_options, gpus_per_node
from launcher.snapshot import take_snapshot
from launcher.time_limit import lead_seconds, limit_seconds, require_heeded, require_lead_below, script_lead
from llmscale.config import RunConfig, load_config
from llmscale.layout import require_legal, require_possible
from llmscale.train.run_directory import RunDirectory

TEMPLATE = Path(__file__).with_name("train.sbatch")
"""The batch script, in a clone and in an installed package."""

CLUSTER = Path("slurm/cluster.env")
"""The facts about a cluster, in the working directory."""

_SOURCE = """
trap 'code=$?; echo "$0 ended the shell with status $code" >&2; exit 3' EXIT
. "$0" >&2 || echo "llmscale: note: the last command of $0 failed with status $?" >&2
trap - EXIT
exec /usr/bin/env -0
"""
"""cluster.env is shell: it holds sbatch's own variables, such as SBATCH_PARTITION, and may load modules."""

_LOGS = ("output", "error")
"""Options of sbatch that name a log."""

_HEREDOC = "END_OF_BATCH_SCRIPT"
_SHELL_SNAPSHOT = "SNAPSHOT_FOLDER"
"""Stands in a printed script for what the shell knows when it runs."""


@dataclass(frozen=True)
class Request:
    """What somebody asks `llmscale launch slurm` for."""

    config: str
    """Path of the YAML config."""
    overrides: tuple[str, ...] = ()
    """`dotted.key=value` strings."""
    nodes: int | None = None
    """Number of nodes; sbatch's options say it, or it is 1."""
    ntasks_per_node: int | None = None
    """Ranks of each node; sbatch's options say it, or there is one per GPU, or one."""
    time_limit: str | None = None
    """As sbatch takes it; the cluster's own where nobody says."""
    options: tuple[str, ...] = ()
    """Any options of sbatch."""
    restarts: int = 0
    """How often a job starts its ranks again after one has failed."""
    chain: int = 1
    """Jobs in a row, each of which goes on where the one before did not end the run."""
    snapshot: bool = True
    """Whether the job runs from a copy of the code and of the resolved config as they are now."""

    def command(self) -> str:
        """The command line that asks for the same, quoted for a shell."""
        ours = {"nodes": self.nodes, "ntasks-per-node": self.ntasks_per_node, "time": self.time_limit}
        ours |= {"restarts": self.restarts or None, "chain": self.chain if self.chain > 1 else None}
        words = [f"--{name}={value}" for name, value in ours.items() if value is not None]
        words += [] if self.snapshot else ["--no-snapshot"]
        theirs = ["--", *self.options] if self.options else []
        return shlex.join(["llmscale", "launch", "slurm", *words, self.config, *self.overrides, *theirs])


def resumption(run: str, overrides: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Config and overrides that continue a run directory as its own config says, on whatever layout fits.

    Raises:
        UserError: it is no run directory.
    """
    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise UserError(
            f"--resume is {run}, which has no config.yaml; give the run.directory of a run that has started"
        )
    return str(config), (f"run.directory={json.dumps(run)}", *overrides)


@dataclass(frozen=True)
class Submission:
    """A checked request: what sbatch is called with."""

    request: Request
    resolved: RunConfig
    options: list[str]
    numbers: list[str]
    """What launcher/job.py is told besides the config."""
    environment: dict[str, str] = field(repr=False)
    name: str
    log: str
    """sbatch's pattern of the log file."""
    below: str
    """The job's working directory, where it is another one."""
    requeued: bool = True
    """Whether the job may go back into the queue."""

    def arguments(self, snapshot: str | None) -> list[str]:
        """Of the batch script."""
        python = f"--python={sys.executable}"
        if snapshot is not None:
            return [python, f"--snapshot={snapshot}", *self.numbers, f"{snapshot}/config.yaml"]
        path = os.path.abspath(self.request.config) if self.below else self.request.config
        return [python, *self.numbers, path, *self.request.overrides]

    def script(self) -> str:
        """A shell script that submits this, batch script included. What cluster.env sets it reads for itself, and the
        snapshot it takes when it runs."""
        lines = [f". {CLUSTER}"] if CLUSTER.exists() else []
        if self.request.snapshot:
            below = [f"--below={self.below}"] if self.below else []
            take = [sys.executable, "-m", "launcher.snapshot", *below, self.request.config, *self.request.overrides]
            lines.append(f"snapshot=$({shlex.join(take)}) || exit")
        words = shlex.join(self.arguments(_SHELL_SNAPSHOT if self.request.snapshot else None))
        words = words.replace(_SHELL_SNAPSHOT, '"$snapshot"')
        batch = f"<<'{_HEREDOC}'\n{TEMPLATE.read_text(encoding='utf-8')}{_HEREDOC}"
        sbatch = shlex.join(["sbatch", *self.options])
        if self.request.chain == 1:
            return "\n".join([*lines, f"{sbatch} /dev/stdin {words} {batch}", ""])
        after = '${job:+"--dependency=afternotok:${job%%;*}" --kill-on-invalid-dep=yes}'
        lines += ["job=", f"for _ in $(seq {self.request.chain}); do"]
        return "\n".join(
            [*lines, f"job=$({sbatch} {after} /dev/stdin {words} {batch}", ") || exit", 'echo "$job"', "done", ""]
        )

    def submit(self) -> list[str]:
        """Call sbatch, once for each job of the chain; what it prints each time, which is `NUMBER` or `NUMBER;CLUSTER`
        unless an option makes it say else.

        Raises:
            UserError: sbatch is missing, or refuses a job; or the snapshot cannot be written.
        """
        snapshot = str(take_snapshot(self.resolved, self.below)) if self.request.snapshot else None
        answers: list[str] = []
        for _ in range(self.request.chain):
            after = [*_after(answers[-1].partition(";")[0])] if answers else []
            command = ["sbatch", *self.options, *after, str(TEMPLATE), *self.arguments(snapshot)]
            answers.append(self._call(command))
        return answers

    def _call(self, command: list[str]) -> str:
        try:
            result = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, errors="replace", check=False
            )
        except FileNotFoundError:
            raise UserError("sbatch is not on the PATH; submit from a login node of the cluster") from None
        if result.returncode:
            lines = (line.removeprefix("sbatch: ").removeprefix("error: ") for line in result.stderr.splitlines())
            said = "; ".join(line.strip() for line in lines if line.strip())
            raise UserError(f"sbatch refused the job: {said}; see {CLUSTER} and the options")
        sys.stderr.write(result.stderr)
        return result.stdout.strip()


def _after(job: str) -> tuple[str, ...]:
    """sbatch's options of the next job of a chain: it begins where the one before has not ended well, else never."""
    return f"--dependency=afternotok:{job}", "--kill-on-invalid-dep=yes"


def prepare(request: Request) -> Submission:
    """Check a request, in the working directory from which it is submitted.

    Raises:
        UserError: the config is wrong, or illegal for this number of ranks; the options contradict each other, or name
            folders that there are not; the time limit is not above the lead of the signal that comes before it, or the
            ranks do not heed that; the run is finished; slurm/cluster.env fails.
    """
    config = load_config(request.config, request.overrides)
    given = given_options(request.options)
    if "wrap" in given:
        raise UserError("--wrap gives sbatch another script, but `launch slurm` submits its own; leave --wrap out")
    environment = cluster_environment()
    if array := environment.get("SBATCH_ARRAY_INX"):
        given.setdefault("array", array)
    _require_a_folder_each(config.run.directory, given.get("array"))
    below = given.get("chdir", "")
    _require_folders(below, {name: given.get(name) or environment.get(f"SBATCH_{name.upper()}", "") for name in _LOGS})
    _require_unfinished(config, below)
    layout, ranks = _layout(request, given, config, environment)
    if ranks is None:
        require_possible(config)
    else:
        require_legal(config, ranks)
    time_limit = _agreed("time", request.time_limit, given)
    signal = given.get("signal", environment.get("SBATCH_SIGNAL", ""))
    if signal:
        require_heeded(signal)
    lead = lead_seconds(signal) if signal else script_lead(TEMPLATE)
    limit = time_limit or environment.get("SBATCH_TIMELIMIT")
    require_lead_below(limit_seconds(limit) if limit else None, lead)
    for sentence in warnings(config, ranks, given, environment, lead):
        tell(f"llmscale: warning: {sentence}")
    name = given.get("job-name") or environment.get("SBATCH_JOB_NAME") or run_name(config)
    log = given.get("output") or environment.get("SBATCH_OUTPUT")
    options = ["--parsable", *layout]
    options += [f"--time={time_limit}"] if time_limit and "time" not in given else []
    options += [f"--job-name={name}"] if "job-name" not in given else []
    if "array" in given and not log:
        log = "slurm-%A_%a.log"
        options.append(f"--output={log}")
    numbers = [f"--lead={lead}"]
    numbers += [f"--restarts={request.restarts}"] if request.restarts else []
    if request.chain > 1:
        if "array" in given:
            raise UserError(f"--chain={request.chain} and --array={given['array']} are both given; use one of them")
        options.append("--no-requeue")
        numbers.append("--chained=1")
    log = os.path.join(below, log or "slurm-%j.log")
    # Of the two options the last counts, and either wins over the variables.
    may = next((option for option in reversed(given) if option in ("requeue", "no-requeue")), "")
    requeued = may == "requeue" or not (may or environment.get("SBATCH_NO_REQUEUE") is not None)
    return Submission(request, config, [*options, *request.options], numbers, environment, name, log, below, requeued)


def run_name(config: RunConfig) -> str:
    """A job's name: that of the run's folder, without placeholders and on one line."""
    parts = (re.sub(r"\{\w*\}", "", part).strip(" -_.") for part in Path(os.path.abspath(config.run.directory)).parts)
    return next((" ".join(part.split()) for part in reversed(list(parts)) if part.strip("/")), "llmscale")


def _require_a_folder_each(directory: str, array: str | None) -> None:
    """Elements of a job array that run at the same time need a run directory each.

    Raises:
        UserError: they have one for all, or its placeholder has no value.
    """
    own = "{array_task}" in directory
    if not own and array is not None and re.search(r"[-,]", array) and not array.endswith("%1"):
        raise UserError(
            f"--array={array} starts several runs in run.directory '{directory}'; put {{array_task}} into it, or"
            f" let them go on with one run, one after the other: --array={array.partition('%')[0]}%1"
        )
    if own and array is None:
        raise UserError(
            f"run.directory is '{directory}', but {{array_task}} has a value only in a job array; give"
            " `-- --array=0-9`, or leave it out"
        )


def _require_folders(below: str, logs: Mapping[str, str]) -> None:
    """Slurm makes no folders: a job without a place for its log ends at once, and without a word.

    Args:
        below: the job's working directory, where it is another one.
        logs: paths of its logs by option; empty where none is given.

    Raises:
        UserError: one does not exist.
    """
    if below and not os.path.isdir(below):
        raise UserError(f"--chdir is {below}, which is no folder; make it, or name another one")
    for name, path in logs.items():
        if path and os.path.isdir(os.path.join(below, path)):
            raise UserError(
                f"--{name} is {path}, which is a folder; give the log a name: {os.path.join(path, '%j.log')}"
            )
        folder = os.path.dirname(os.path.join(below, path)) if path else ""
        if folder and "%" not in folder and not os.path.isdir(folder):
            raise UserError(
                f"--{name} is {path}, but {folder} is no folder, and Slurm makes none for a log; make it: mkdir -p"
                f" {shlex.quote(folder)}"
            )


def _require_unfinished(config: RunConfig, below: str) -> None:
    """Refuse to wait in a queue for nothing.

    Raises:
        UserError: the run has made all of its steps.
    """
    run = RunDirectory(Path(below) / config.run.directory)
    if run.is_finished(config):
        raise UserError(
            f"{run.path} is finished: all {run.outcome()['step']} steps are done, see {run.summary_file}; to go on,"
            " give more of them (train.steps, train.epochs), else another run.directory"
        )


def follow_up(request: Request, submission: Submission, answers: list[str]) -> str:
    """What to do with submitted jobs, for a person; `answers` is what sbatch said."""
    numbers = [answer.partition(";")[0] for answer in answers]
    cluster = answers[0].partition(";")[2]
    where = f"--clusters={cluster} " if cluster else ""
    log = submission.log
    for letter, text in {"j": numbers[0], "A": numbers[0], "x": submission.name}.items():
        log = log.replace(f"%{letter}", text)
    # what only the job knows, such as the task of an array, stays open
    pattern = "*".join(shlex.quote(piece) if piece else "" for piece in re.split(r"%\d*\w", log))
    if request.chain == 1:
        who, again = f"job {numbers[0]} '{submission.name}' is in the queue", "the job queues itself again"
        if not submission.requeued:
            again = "(the job does not queue itself again)"
    else:
        who = f"jobs {numbers[0]} to {numbers[-1]} '{submission.name}' are in the queue, one after the other"
        again = "the next job of the chain goes on"
    return (
        f"{who}\n"
        f"  follow:  tail -F {pattern}\n"
        f"  look:    squeue {where}--job {','.join(numbers)}\n"
        f"  cancel:  scancel {where}{' '.join(numbers)}   (the run saves first)\n"
        f"  resume:  after a time limit or preemption {again}; after anything else\n"
        f"           {request.command()}"
    )


def cluster_environment() -> dict[str, str]:
    """This process's environment as sbatch is to have it: with what slurm/cluster.env sets, without another job's.

    Raises:
        UserError: the file ends the shell that reads it.
    """
    within = "SLURM_JOB_ID" in os.environ
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in RANK_VARIABLES and not (within and name.startswith("SLURM_") and name != "SLURM_CONF")
    }
    if not CLUSTER.exists():
        if CLUSTER.is_symlink():
            raise UserError(
                f"{CLUSTER} is a link to {os.readlink(CLUSTER)}, which does not exist; correct it, or remove it"
            )
        return environment
    result = subprocess.run(
        ["bash", "-c", _SOURCE, str(CLUSTER)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    if result.returncode:
        raise UserError(f"{CLUSTER} ended the shell that reads it; correct the command that is named above")
    entries = (entry.partition("=") for entry in os.fsdecode(result.stdout).split("\0"))
    return {name: value for name, equals, value in entries if equals}


def _layout(
    request: Request, given: Mapping[str, str], config: RunConfig, environment: Mapping[str, str]
) -> tuple[list[str], int | None]:
    """sbatch's options for nodes and ranks that are not among the given ones, and the number of ranks where it is
    known before the job starts."""
    options = []
    # Where a number of ranks is given and none of nodes, Slurm finds as many as that takes.
    asked_nodes = _agreed("nodes", request.nodes, given) or ("" if "ntasks" in given else "1")
    per_node = _agreed("ntasks-per-node", request.ntasks_per_node, given)
    if asked_nodes and "nodes" not in given:
        options.append(f"--nodes={asked_nodes}")
    nodes = int(asked_nodes) or None if asked_nodes.isdecimal() else None  # sbatch refuses 0 itself
    if "ntasks" in given:
        if per_node is not None and nodes is not None and given["ntasks"] != str(int(per_node) * nodes):
            raise UserError(
                f"--ntasks={given['ntasks']}, but {nodes} nodes x {per_node} ranks are {int(per_node) * nodes}; leave"
                " one of them out"
            )
        ranks = int(given["ntasks"]) if given["ntasks"].isdecimal() else None
    elif per_node is None and (nodes is None or "ntasks-per-gpu" in given):
        return options, None
    else:
        if per_node is None and nodes is not None:
            on_gpu = config.run.device != "cpu"
            per_node = str((gpus_per_node(given, environment, nodes) if on_gpu else 0) or 1)
        ranks = nodes * int(per_node) if nodes is not None and per_node is not None and per_node.isdecimal() else None
    if per_node is not None and "ntasks-per-node" not in given:
        options.append(f"--ntasks-per-node={per_node}")
    return options, ranks


def _agreed(name: str, ours: int | str | None, given: Mapping[str, str]) -> str | None:
    """The value of an option that may stand before and after `--`.

    Raises:
        UserError: both are given and differ.
    """
    theirs = given.get(name)
    if ours is not None and theirs not in (None, str(ours)):
        raise UserError(f"--{name} is {ours}, but {theirs} after `--`; give it once")
    return str(ours) if ours is not None else theirs
