"""Reading options of sbatch, to know what a job asks for. sbatch itself gets them as they are."""

import re
from collections.abc import Mapping, Sequence

from data_pipeline.base.errors import UserError

_LETTERS = {
    "a": "array",
    "D": "chdir",
    "e": "error",
    "G": "gpus",
    "J": "job-name",
    "n": "ntasks",
    "N": "nodes",
    "o": "output",
    "t": "time",
}
"""Short options that this module's callers ask about."""

_FLAG_LETTERS = "hHIkOQRsvVW"
"""Short options without a value."""

_FLAGS = {
    *("contiguous", "disable-stdout-job-info", "exclusive", "get-user-env", "help", "hold", "ignore-pbs"),
    *("nice", "no-bell", "no-kill", "no-requeue", "no-shell", "overcommit", "oversubscribe"),
    *("parsable", "propagate", "quiet", "reboot", "requeue", "share", "spread-job", "test-only", "usage"),
    *("use-min-nodes", "verbose", "version", "wait"),
}
"""Long options without a value, or with one that only `=` can give."""

_SHORTENED = {
    **dict.fromkeys(("array", "chdir", "error", "job-name", "output", "signal", "wrap"), 3),
    **{"gpus-per-node": 10, "ntasks-per-node": 12, "ntasks-per-gpu": 12, "tasks-per-node": 3},
}
"""Long names that callers ask about and that getopt takes by their beginnings, and of how many letters at least."""

_ALIASES = {"tasks-per-node": "ntasks-per-node"}


def given_options(options: Sequence[str]) -> dict[str, str]:
    """Long name to value of options of sbatch, read as getopt does: the last of a name counts, a flag is empty.

    Raises:
        UserError: a word is no option. sbatch would take it for the batch script.
    """
    found: dict[str, str] = {}
    words = list(options)
    while words:
        word = words.pop(0)
        if word in ("-", "--") or not word.startswith("-"):
            raise UserError(
                f"'{word}' is no option of sbatch, and after `--` there is place for nothing else; give CONFIG and its"
                " overrides before `--`"
            )
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            shortened = (full for full, least in _SHORTENED.items() if len(name) >= least and full.startswith(name))
            name = next(shortened, name)
            name = _ALIASES.get(name, name)
            takes = not equals and name not in _FLAGS
        else:
            name, value = _short(word[1:])
            takes = not value and name[:1] not in _FLAG_LETTERS
            name = _LETTERS.get(name, name)
        if takes:
            if not words:
                raise UserError(f"sbatch's option {word} has no value; write {word}=VALUE after `--`")
            value = words.pop(0)
        found[name] = value
    return found


def _short(letters: str) -> tuple[str, str]:
    """Letter and value of a group of short options: `N2` and `HN2` are ("N", "2")."""
    while letters[0] in _FLAG_LETTERS and len(letters) > 1:
        letters = letters[1:]
    return letters[0], letters[1:]


def gpus_per_node(given: Mapping[str, str], environment: Mapping[str, str], nodes: int) -> int:
    """How many GPUs of a node the options ask for, or sbatch's own variables; 0 where neither does.

    Raises:
        UserError: it cannot be said, since they are not the same number on each node.
    """

    def asked(option: str) -> str:
        return given.get(option, environment.get(f"SBATCH_{option.upper().replace('-', '_')}", ""))

    if per_node := asked("gpus-per-node"):
        return gpu_count(per_node)
    if total := asked("gpus"):
        gpus = gpu_count(total)
        if gpus % nodes:
            raise UserError(
                f"--gpus={total} is no multiple of the {nodes} nodes; give --gpus-per-node, or say --ntasks-per-node"
            )
        return gpus // nodes
    kinds = [kind.removeprefix("gres/") for kind in asked("gres").split(",")]
    return sum(_count(kind[3:].lstrip(":")) for kind in kinds if re.match(r"gpu\b", kind))


def gpu_count(kinds: str) -> int:
    """GPUs of `8`, `a100:8`, `a100` or several of these: `a100:4,h100:4`."""
    return sum(map(_count, kinds.split(",")))


def _count(kind: str) -> int:
    """Of `8`, `a100:8` or `a100`."""
    last = re.sub(r"\(.*", "", kind).rpartition(":")[2]
    return int(last) if last.isdecimal() else 1
