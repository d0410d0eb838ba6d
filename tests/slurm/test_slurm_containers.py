"""The recipe for Apptainer in docs/guide/cluster.md, with a stand-in that gives a command a root of its own."""

import sys

import pytest

from tests.slurm.conftest import Cluster
from tests.tiny_run import losses, write_tiny_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

APPTAINER = """#!/bin/bash
[ "$1 $2" = "exec --nv" ] || exit 9
image=$(realpath "$3")
shift 3
exec unshare --mount bash -c '
  image=$1; shift
  for folder in /*; do
    [ -d "$folder" ] && mkdir -p "$image$folder" && mount --rbind "$folder" "$image$folder"
  done
  for program in scontrol srun sinfo squeue; do mount --bind /bin/false "$image/usr/bin/$program"; done
  exec chroot "$image" env -C "$PWD" "$@"' apptainer "$image" "$@"
"""
"""An image has the machine's folders, but of Slurm neither commands that work nor anything else than variables."""


def test_ranks_in_containers_find_each_other_and_train_as_others_do(cluster: Cluster) -> None:
    config = write_tiny_run(cluster.project).name
    for folder in ("bin", "IMAGE.sif"):
        (cluster.project / folder).mkdir()
    program = cluster.project / "bin/apptainer"
    program.write_text(APPTAINER)
    program.chmod(0o755)
    command = cluster.project / "bin/llmscale"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m llmscale "$@"\n')
    command.chmod(0o755)
    cluster.environment["PATH"] = f"{program.parent}:{cluster.environment['PATH']}"
    srun, train = ("srun", "--nodes=2", "--ntasks-per-node=1"), ("llmscale", "train", config, "train.steps=4")
    cluster.run(*srun, "apptainer", "exec", "--nv", "IMAGE.sif", *train, "run.directory=inside")
    cluster.run(*srun, *train, "run.directory=outside")
    inside = losses(cluster.project / "inside")
    assert list(inside) == [1, 2, 3, 4]
    assert inside == losses(cluster.project / "outside")
