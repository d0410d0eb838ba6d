"""Options of `llmscale launch slurm` and of sbatch: what is derived, and contradictions, which are refused."""

import pytest

from launcher.sbatch_options import given_options, gpus_per_node
from tests.launcher.login_node import assert_refused


@pytest.mark.parametrize(
    ("before", "options", "ranks"),
    [
        ([], [], ["--nodes=1", "--ntasks-per-node=1"]),
        (["--nodes=2"], ["--gpus-per-node=a100:8"], ["--nodes=2", "--ntasks-per-node=8"]),
        (["--nodes=2"], ["--gres=gpu:4,nvme:1"], ["--nodes=2", "--ntasks-per-node=4"]),
        (["--nodes=2"], ["-G", "6"], ["--nodes=2", "--ntasks-per-node=3"]),
        (["--nodes=2", "run.device=cpu"], ["--gpus-per-node=8"], ["--nodes=2", "--ntasks-per-node=1"]),
        ([], ["-N", "2", "--ntasks-per-node=4"], []),
        ([], ["-N2", "-n6"], []),
        ([], ["-n6"], []),
        (["--nodes=3"], ["-n6"], ["--nodes=3"]),
        (["--nodes=2"], ["--nodes=2"], ["--ntasks-per-node=1"]),
        ([], ["-N2-4"], []),
        ([], ["-N", "2", "--tasks-per-node=4"], []),
        (["--nodes=2"], ["--ntasks-per-n", "3"], ["--nodes=2"]),
        (["--nodes=2"], ["--gpus-per-n=a100:8"], ["--nodes=2", "--ntasks-per-node=8"]),
    ],
)
def test_how_many_ranks_there_are_is_said_once(login, before, options, ranks):
    given = ["train.global_batch=96", "data.lanes=96"]
    login.launch("config.yaml", *given, *before, "--", *options)
    words = login.arguments()
    end = len(words) - words[::-1].index("--parsable")
    ours = words[end : next(i for i, word in enumerate(words) if word.endswith(".sbatch")) - len(options)]
    assert [word for word in ours if word.startswith(("--nodes", "--ntasks"))] == ranks


@pytest.mark.parametrize(
    ("before", "options", "says"),
    [
        (["--nodes=2"], ["--nodes=4"], ["--nodes is 2, but 4"]),
        (["--ntasks-per-node=2"], ["--ntasks-per-node", "4"], ["--ntasks-per-node is 2, but 4"]),
        (["--time=10"], ["-t", "20"], ["--time is 10, but 20"]),
        (["--ntasks-per-node=2"], ["--tasks-per-node", "4"], ["--ntasks-per-node is 2, but 4"]),
        (["--nodes=2", "--ntasks-per-node=2"], ["-n", "5"], ["--ntasks=5", "2 nodes x 2 ranks are 4"]),
        (["--nodes=2"], ["--gpus=5"], ["--gpus=5", "2 nodes"]),
        ([], ["--wrap=hostname"], ["--wrap"]),
        ([], ["--mem=8G", "run.seed=3"], ["'run.seed=3'", "before `--`"]),
        ([], ["-p"], ["-p has no value"]),
        ([], ["-N", "7"], ["train.global_batch (32) must be a multiple of the data-parallel size (7)"]),
        (["--time=2"], [], ["limit of 120 s", "not above the 120 s"]),
        ([], ["-t", "1"], ["limit of 60 s", "not above the 120 s"]),
        (["--time=5"], ["--signal=B:USR1@300"], ["limit of 300 s", "not above the 300 s"]),
        (["--time=soon"], [], ["'soon'"]),
        ([], ["-a0-3"], ["--array=0-3", "'runs/run-7'", "{array_task}"]),
        (["run.directory=runs/{array_task}"], [], ["'runs/{array_task}'", "--array"]),
    ],
)
def test_contradictions_are_refused_with_both_values(login, before, options, says):
    assert_refused(login, "config.yaml", "train.global_batch=32", *before, "--", *options, says=says)


def test_a_time_limit_of_the_clusters_settings_counts_too(login):
    login.settings("export SBATCH_TIMELIMIT=00:02:00\n")
    assert_refused(login, "config.yaml", says=["limit of 120 s", "120 s before"])


@pytest.mark.parametrize("how", [["--time=2", "config.yaml", "--", "--signal=USR1@30"], ["config.yaml", "--", "-t3"]])
def test_a_limit_above_the_lead_is_submitted(login, how):
    login.launch(*how)
    assert login.submitted()
    lead = next(word for word in login.arguments() if word.startswith("--lead="))
    assert lead == ("--lead=30" if "--time=2" in how else "--lead=120"), "the job need not guess it"


def test_options_are_read_as_getopt_reads_them():
    words = ["-HN2", "-t", "10", "--mem", "8G", "--exclusive", "--exclusive=user", "--outp=x", "-oy", "--sig=USR1@9"]
    words += ["--kill-on-invalid-dep", "yes", "--tasks-per-n", "2", "--ntasks=4"]
    assert given_options(words) == {
        "nodes": "2",
        "time": "10",
        "mem": "8G",
        "exclusive": "user",
        "output": "y",
        "signal": "USR1@9",
        "kill-on-invalid-dep": "yes",
        "ntasks-per-node": "2",
        "ntasks": "4",
    }


def test_gpus_of_a_node_are_counted():
    def count(given, environment=None):
        return gpus_per_node(given, environment or {}, nodes=2)

    assert count({"gpus-per-node": "8"}) == 8
    assert count({"gpus-per-node": "a100:2,h100:1"}) == 3
    assert count({"gres": "nvme:1,gpu:a100:4(S:0)"}) == 4
    assert count({"gres": "gres/gpu"}) == 1
    assert count({"gpus": "16"}) == 8
    assert count({}, {"SBATCH_GPUS_PER_NODE": "4"}) == 4
    assert count({}) == 0
