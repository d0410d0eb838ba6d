"""What Slurm tells a task, against Slurm's own commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.environment import first_host

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

REPORT = """
import json, os, socket
from launcher.environment import adopt_slurm_environment
before = set(os.environ)
adopted = adopt_slurm_environment()
new = {name: os.environ[name] for name in set(os.environ) - before}
print(json.dumps({"adopted": adopted, "host": socket.gethostname(), "new": new, "procid": os.environ["SLURM_PROCID"]}))
"""


def tasks(cluster, *options):
    lines = cluster.run("srun", "--label", *options, sys.executable, "-c", REPORT).splitlines()
    reports = [json.loads(line.split(": ", 1)[1]) for line in lines]
    return sorted(reports, key=lambda report: int(report["procid"]))


def test_every_task_knows_its_place(cluster):
    reports = tasks(cluster, "--nodes=2", "--ntasks=3")
    hosts = [report["host"] for report in reports]
    assert hosts == ["n1", "n1", "n2"]
    for rank, report in enumerate(reports):
        on_node = [other for other in range(3) if hosts[other] == hosts[rank]]
        assert report["adopted"]
        assert report["new"].pop("MASTER_PORT").startswith("2")
        assert {name: value for name, value in report["new"].items() if not name.startswith("LLMSCALE_")} == {
            "RANK": str(rank),
            "WORLD_SIZE": "3",
            "LOCAL_RANK": str(on_node.index(rank)),
            "LOCAL_WORLD_SIZE": str(len(on_node)),
            "MASTER_ADDR": hosts[0],
        }


def test_a_step_on_part_of_a_job_is_a_world_of_its_own(cluster):
    """The address is that of the step's first node, not of the job's."""
    script = f"srun --nodes=1 --ntasks=2 --nodelist=n2 {sys.executable} -c '{REPORT}' > step.out"
    job = cluster.run("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--wrap", script).strip()
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED"
    reports = [json.loads(line) for line in (cluster.project / "step.out").read_text().splitlines()]
    assert {report["new"]["MASTER_ADDR"] for report in reports} == {"n2"}
    assert {report["new"]["WORLD_SIZE"] for report in reports} == {"2"}


def test_a_batch_script_is_no_rank(cluster):
    script = f"{sys.executable} -c '{REPORT}' > batch.out"
    job = cluster.run("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--wrap", script).strip()
    assert cluster.wait_for_end(job)["JobState"] == "COMPLETED"
    report = json.loads((cluster.project / "batch.out").read_text())
    assert (report["adopted"], report["new"], report["procid"]) == (False, {}, "0")


DEVICE = """
import json, os
from launcher.environment import adopt_slurm_environment
from llmscale.distributed.gpus import gpu_of
seen = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
adopt_slurm_environment()
gpu = seen[gpu_of(int(os.environ["LOCAL_RANK"]), len(seen))]
print(json.dumps({"seen": len(seen), "gpu": os.environ["SLURMD_NODENAME"] + ":" + gpu}))
"""


@pytest.mark.parametrize(
    ("options", "seen"),
    [(["--gpus-per-node=2"], 2), (["--gpus-per-node=2", "--gpu-bind=single:1"], 1), (["--gpus-per-task=1"], 1)],
)
def test_each_rank_has_a_gpu_of_its_own_however_they_are_bound(cluster, options, seen):
    layout = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2")
    output = cluster.run("srun", *layout, *options, sys.executable, "-c", DEVICE)
    tasks = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert {task["seen"] for task in tasks} == {seen}
    assert len({task["gpu"] for task in tasks}) == 4, tasks


@pytest.mark.parametrize(
    "nodelist",
    ["n1", "n[1-2]", "gpu[003-010,015],cpu1", "n[7,9]", "rack[2-3]n[08-15,20],login1", "a-1.cluster,b"],
)
def test_the_first_host_is_that_of_scontrol(cluster, nodelist):
    expected = cluster.run("scontrol", "show", "hostnames", nodelist).splitlines()[0]
    assert first_host(nodelist) == expected


def test_the_template_is_valid_shell():
    for script in ("slurm/train.sbatch", "slurm/cluster.env.example", "tests/slurm/cluster.sh"):
        subprocess.run(["bash", "-n", ROOT / script], check=True)


MEET = """
import json, os, socket, sys
from launcher.environment import adopt_slurm_environment
adopt_slurm_environment()
from llmscale.distributed.process_group import gather_objects, join, leave, read_world
join(read_world("cpu"))
place = [os.environ[name] for name in ("RANK", "WORLD_SIZE")]
found = gather_objects([socket.gethostname(), sys.argv[1], *place])
leave()
if place[0] == "0":
    print(json.dumps(found))
"""


def meet(cluster, script: str) -> dict[str, list[list[str]]]:
    """What the ranks of each step of a job on both nodes, four tasks each, find of each other, by the step's name."""
    (cluster.project / "meet.py").write_text(MEET)
    job = cluster.run("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=4", "--wrap", script).strip()
    record = cluster.wait_for_end(job)
    output = (cluster.project / f"slurm-{job}.out").read_text()
    assert record["JobState"] == "COMPLETED", output
    worlds = [json.loads(line) for line in output.splitlines() if line.startswith("[[")]
    return {world[0][1]: world for world in worlds}


def test_steps_that_share_a_node_meet_each_for_itself_though_the_port_of_one_is_taken(cluster):
    port = "20000 + int(os.environ['SLURM_JOB_ID']) % 10000"
    listener = f"import os, socket, time; taken = socket.create_server(('', {port})); time.sleep(600)"
    step = f"srun --exact --nodes=1 --ntasks=2 --nodelist=n1 {sys.executable} meet.py"
    steps = f"{step} a & a=$!; {step} b & b=$!; wait $a $b"
    found = meet(cluster, f'{sys.executable} -c "{listener}" & taken=$!; sleep 1; {steps}; kill $taken')
    for name in ("a", "b"):
        assert found[name] == [["n1", name, str(rank), "2"] for rank in range(2)]


def test_torchrun_within_srun_starts_the_ranks(cluster):
    port = 29000 + os.getpid() % 1000
    options = f"--nnodes 2 --nproc-per-node 2 --rdzv-id x --rdzv-backend c10d --rdzv-endpoint n1:{port}"
    torchrun = f"{sys.executable} -m torch.distributed.run {options} meet.py a"
    world = meet(cluster, f"srun --nodes=2 --ntasks=2 --ntasks-per-node=1 {torchrun}")["a"]
    assert [place[2:] for place in world] == [[str(rank), "4"] for rank in range(4)]
    assert sorted(place[0] for place in world) == ["n1", "n1", "n2", "n2"]
