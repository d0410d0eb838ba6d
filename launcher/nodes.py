"""Sick nodes of a Slurm job: found before its ranks start, and left out when it goes back into the queue."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence, Set
from dataclasses import asdict
from typing import Any

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import tell
from launcher.node_check import MOST_SKEW, Wanted
from launcher.snapshot import module_command
from llmscale.train.run_directory import RunDirectory

ANSWER_SECONDS = 60.0
"""How long all nodes may take to answer together; one that has not is sick."""
_OF_A_NODE = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOTCONN, errno.EHOSTDOWN}
"""How writing fails where a file system is not well on this node alone."""
LEAST_FREE = 64 << 20
"""Bytes that a run folder needs where no checkpoint tells how large the next will be."""
_ADVICE = "mend the node and submit again, or continue on fewer: llmscale launch slurm --resume RUN --nodes N"
_CHECK = """
words=$("$0" "$@" 2>&1) && { printf '%s\\n' "$words"; exit; }
[ -x "$0" ] || words="there is no $0; name in slurm/cluster.env an environment that every node has"
words=$(printf '%s' "$words" | tail -n 1 | tr -cd '[:alnum:][:punct:] ' | tr '"\\134' "'/")
printf '{"node": "%s", "time": %s, "problems": ["%s"], "mistake": ""}\\n' \\
  "${SLURMD_NODENAME:-$(hostname)}" "$(date +%s)" "${words:-the check of nodes ended without a word}"
"""
"""What srun starts on each node: the check, or its answer where Python cannot even begin it."""


def sick_nodes(run: RunDirectory, nodes: Sequence[str], gpus: int, seconds: float = ANSWER_SECONDS) -> dict[str, str]:
    """What is wrong with the nodes of this job, by name; nothing where all are fit.

    Args:
        nodes: all of them, in Slurm's order; ranks meet on the first.
        gpus: how many the job has on each node; 0 where the ranks use none.

    Raises:
        UserError: ranks could not meet where MASTER_ADDR and MASTER_PORT say, on whatever nodes.
    """
    mark = f".nodes-{secrets.token_hex(8)}" if len(nodes) > 1 else ""
    path = run.path / mark
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if mark:
            path.write_text("written by the first node for the others to see")
    except OSError as error:
        if error.errno not in _OF_A_NODE:
            return {}  # nobody could write there, as the ranks will say
        return {nodes[0]: f"it cannot write in the run folder {run.path}: {error.strerror}"}
    port = os.environ.get("MASTER_PORT", "") if "LLMSCALE_PORTS" not in os.environ else ""
    chosen = os.environ.get("MASTER_ADDR", ""), int(port) if port.isdecimal() and len(port) < 6 else 0
    wanted = Wanted(str(run.path.absolute()), mark, nodes[0], gpus, _checkpoint_bytes(run), *chosen)
    srun = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--overlap"]
    check = ["bash", "-c", _CHECK, *module_command("launcher.node_check"), json.dumps(asdict(wanted))]
    began = time.time()
    try:
        # `sbatch --export=NONE` is about what the job gets; srun would read it as what the check gets.
        environment = {**os.environ, "SLURM_EXPORT_ENV": "ALL"}
        done = subprocess.run(
            [*srun, *check], env=environment, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False
        )
        output = done.stdout
    except subprocess.TimeoutExpired as late:
        output = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
    finally:
        if mark:
            path.unlink(missing_ok=True)
    return judged(output, nodes, began, time.time())


def judged(output: str, nodes: Sequence[str], began: float, ended: float) -> dict[str, str]:
    """What the nodes' answers say: `output` has a line of JSON of each, `began` and `ended` bound the asking.

    Raises:
        UserError: what is wrong is no node's fault.
    """
    found: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            answer = json.loads(line)
            answers[answer["node"]] = answer
    if not answers:
        tell("llmscale: no node has answered the check before the start, so it says nothing of them")
        return {}
    for answer in answers.values():
        if answer.get("mistake"):
            raise UserError(answer["mistake"])
    for node in nodes:
        if node not in answers:
            found[node] = "it gave no answer"
            continue
        skew = max(began - answers[node]["time"], answers[node]["time"] - ended)
        problems = list(answers[node]["problems"])
        if skew > MOST_SKEW:
            problems.append(f"its clock is {skew:.0f} s off that of {nodes[0]}")
        if problems:
            found[node] = "; ".join(problems)
    return found


def node_names(environment: dict[str, str]) -> list[str]:
    """The job's nodes, as Slurm lists them; none where it does not say."""
    listed = environment.get("SLURM_JOB_NODELIST", "")
    if not listed:
        return []
    done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=False)
    return done.stdout.split()


class Exclusions:
    """The nodes that a job has been requeued without, on record in the run's logs."""

    def __init__(self, run: RunDirectory, job: str, most: int) -> None:
        """`most`: times that the job goes back without a node."""
        self._path, self._job, self._most = run.logs / "sick_nodes.json", job, most
        state: Any = {}
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(self._path.read_text(encoding="utf-8"))
        same = isinstance(state, dict) and state.get("job") == job
        self.nodes: dict[str, str] = dict(state.get("nodes", {})) if same else {}
        self._times = int(state.get("times", 0)) if same else 0

    def requeue_without(self, sick: dict[str, str]) -> bool:
        """Put the job back into the queue, not to run on these nodes again; False, and why, where it does not go back.

        Slurm takes the list of a job that is pending only, and ends this process once it is: by SIGTERM, and after the
        cluster's KillWait for good. A job that is not told in time starts again with the node, where the next check
        finds it again; it is neither held nor given a list that would let it wait for ever.
        """
        for node, why in sick.items():
            tell(f"llmscale: node {node} is not fit: {why}")
        self.nodes.update(sick)
        record = self._record()
        excluded = self.nodes.keys() | _names(record.get("ExcNodeList", ""))  # by sbatch's --exclude, too
        without, left = ",".join(sorted(excluded)), _nodes_left(excluded)
        if obstacle := self._obstacle(record, without, left):
            tell(f"llmscale: job {self._job} {obstacle}")
            return False
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"job": self._job, "times": self._times + 1, "nodes": self.nodes})
        except OSError as error:  # without it the job might go on for ever
            tell(f"llmscale: cannot write {self._path} ({error.strerror}), so job {self._job} ends here")
            return False
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _scontrol("requeue", self._job):
            return False
        # Only now Slurm tells of all partitions that the job may run in; where it does not, the next start looks again.
        partitions = self._record().get("Partition", "").split(",")
        if partitions == [""]:
            return True
        if _too_few(partitions, left):
            tell(f"llmscale: job {self._job} {_shortage(partitions, left, without)}, so it is cancelled; {_ADVICE}")
            _output("scancel", self._job)
            return False
        tell(f"llmscale: job {self._job} goes back into the queue without {without}")
        return _scontrol("update", f"JobId={self._job}", f"ExcNodeList={without}")

    def _obstacle(self, record: dict[str, str], without: str, left: dict[str, int]) -> str:
        """Why the job would not run again without these nodes, and what to do; empty without a reason.

        Args:
            record: what Slurm knows of the job.
            without: names of the nodes.
            left: number of the others, by partition.
        """
        if self._times >= self._most:
            return (
                f"has gone back {self._times} times without a sick node (recovery.node_exclusions is {self._most}), so"
                " it ends here; mend the nodes, or raise that"
            )
        if record.get("Requeue") == "0":
            return f"may not be requeued, so it ends here; mend the node, or submit again with --exclude={without}"
        if named := sorted(_names(record.get("ReqNodeList", "")) & self.nodes.keys()):
            return f"was told by --nodelist to run on {', '.join(named)}, so it ends here"
        partition = os.environ.get("SLURM_JOB_PARTITION", "")
        if _too_few([partition], left) and _too_few(list(left), left):
            others = " and no other one has enough" if len(left) > 1 else ""
            return f"{_shortage([partition], left, without)}{others}, so it ends here; {_ADVICE}"
        return ""

    def _record(self) -> dict[str, str]:
        """What Slurm knows of the job; empty where it does not answer."""
        words = _output("scontrol", "--oneliner", "show", "job", self._job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def _names(listed: str) -> set[str]:
    """The nodes of a list in a job's record."""
    return set(node_names({"SLURM_JOB_NODELIST": listed})) if listed != "(null)" else set()


def _nodes_left(excluded: Set[str]) -> dict[str, int]:
    """How many other nodes each partition of the cluster has; empty where Slurm does not say."""
    left: dict[str, int] = {}
    for line in _output("sinfo", "--all", "--noheader", "--Node", "--format=%R %N").splitlines():
        partition, _, node = line.partition(" ")
        left[partition] = left.get(partition, 0) + (node.strip() not in excluded)
    return left


def _too_few(partitions: Sequence[str], left: dict[str, int]) -> bool:
    """Whether none of these partitions has nodes enough for this job; False where that is not known."""
    needed = os.environ.get("SLURM_JOB_NUM_NODES", "")
    return needed.isdecimal() and all(left.get(partition, int(needed)) < int(needed) for partition in partitions)


def _shortage(partitions: Sequence[str], left: dict[str, int], without: str) -> str:
    have = " and ".join(f"partition {partition} has {left[partition]}" for partition in partitions)
    return f"needs {os.environ['SLURM_JOB_NUM_NODES']} nodes, but {have} without {without}"


def _output(*command: str) -> str:
    """What one of Slurm's commands prints; empty where it fails."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    except OSError:
        return ""


def _scontrol(*arguments: str) -> bool:
    done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        tell(f"llmscale: scontrol {' '.join(arguments)} failed: {(done.stderr or done.stdout).strip()}")
    return done.returncode == 0


def faulty_nodes(run: RunDirectory) -> dict[str, str]:
    """The nodes on which the last attempt met a silent error, as outcome.json says."""
    outcome = run.outcome()
    faults = outcome.get("faulty")
    if outcome.get("outcome") != "failed" or not isinstance(faults, list):
        return {}
    return {
        str(fault["node"]): f"rank {fault.get('rank')} computed wrongly at {fault.get('where')}"
        for fault in faults
        if isinstance(fault, dict) and "node" in fault
    }


def _checkpoint_bytes(run: RunDirectory) -> int:
    """What the next checkpoint takes, by the newest one."""
    newest = max(run.checkpoints.glob("step-*"), default=None)
    size = 0
    with contextlib.suppress(OSError):
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) if newest else 0
    return max(LEAST_FREE, size)
