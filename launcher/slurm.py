"""Submitting a run to Slurm."""

import subprocess
from pathlib import Path

from data_pipeline.errors import UserError
from llmscale.config import load_config
from llmscale.legality import require_legal

_FOLDER = Path("slurm")


def submit(
    config: str, overrides: tuple[str, ...], nodes: int, ntasks_per_node: int, time_limit: str | None = None
) -> int:
    """Submit slurm/train.sbatch from the working directory, with the settings of slurm/cluster.env where it exists.

    Args:
        config: path of the YAML config, which is checked first.
        overrides: `dotted.key=value` strings.
        nodes: number of nodes.
        ntasks_per_node: ranks on each node.
        time_limit: as sbatch takes it; the cluster's own default when not given.

    Returns:
        The job's number.

    Raises:
        UserError: the config is wrong or illegal for this number of ranks, slurm/train.sbatch or sbatch is missing, or
            Slurm refuses the job.
    """
    require_legal(load_config(config, overrides), nodes * ntasks_per_node)
    template = _FOLDER / "train.sbatch"
    if not template.is_file():
        raise UserError(f"no {template} in the working directory; submit from the root of the repository")
    options = [f"--nodes={nodes}", f"--ntasks-per-node={ntasks_per_node}"]
    options += [f"--time={time_limit}"] if time_limit else []
    # cluster.env is shell: it holds sbatch's own variables, such as SBATCH_PARTITION, and may load modules
    script = '[ ! -r "$0" ] || . "$0"; exec sbatch --parsable "$@"'
    result = subprocess.run(
        ["bash", "-c", script, str(_FOLDER / "cluster.env"), *options, str(template), config, *overrides],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode == 127:
        raise UserError("sbatch is not on the PATH; submit from a login node of the cluster")
    if result.returncode:
        raise UserError(f"sbatch refused the job: {result.stderr.strip()}; see slurm/cluster.env")
    return int(result.stdout.split(";")[0].split()[-1])
