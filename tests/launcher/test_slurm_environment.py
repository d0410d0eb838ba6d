"""Slurm's variables as torchrun's. What a real Slurm gives is checked in tests/slurm."""

import pytest

from data_pipeline.base.errors import UserError
from launcher.environment import adopt_slurm_environment, first_host

# As srun of Slurm 22.05 sets them for the last task of `srun --nodes=3 --ntasks=5`.
TASK = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[009-011]",
}
# Of `srun --pty bash`.
ALONE = TASK | {
    "SLURM_PROCID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_STEP_NODELIST": "gpu009",
}


def test_a_task_becomes_a_rank():
    environment = dict(TASK)
    assert adopt_slurm_environment(environment)
    assert {name: environment[name] for name in environment if name not in TASK} == {
        "RANK": "4",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "gpu009",
        "MASTER_PORT": "23456",
        "LLMSCALE_PORTS": "16",
        "LLMSCALE_TOKEN": "123456.0",
    }


@pytest.mark.parametrize(("node", "local_size"), [("0", "2"), ("1", "2"), ("2", "1")])
def test_the_local_world_is_that_of_the_tasks_own_node(node, local_size):
    environment = TASK | {"SLURM_NODEID": node}
    adopt_slurm_environment(environment)
    assert environment["LOCAL_WORLD_SIZE"] == local_size


def test_steps_of_a_job_meet_on_ports_of_their_own_and_know_each_other():
    first, second, secret = TASK | {}, TASK | {"SLURM_STEP_ID": "1"}, TASK | {"LLMSCALE_TOKEN": "secret"}
    for environment in (first, second, secret):
        adopt_slurm_environment(environment)
    ports = [
        set(range(int(environment["MASTER_PORT"]), int(environment["MASTER_PORT"]) + 16))
        for environment in (first, second)
    ]
    assert not ports[0] & ports[1]
    assert len({environment["LLMSCALE_TOKEN"] for environment in (first, second, secret)}) == 3


def test_cores_per_task_become_threads_unless_the_user_set_them():
    environment = TASK | {"SLURM_CPUS_PER_TASK": "6"}
    adopt_slurm_environment(environment)
    assert environment["OMP_NUM_THREADS"] == "6"
    environment = TASK | {"SLURM_CPUS_PER_TASK": "6", "OMP_NUM_THREADS": "3"}
    adopt_slurm_environment(environment)
    assert environment["OMP_NUM_THREADS"] == "3"


def test_an_address_and_port_of_the_users_own_are_kept():
    environment = TASK | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000", "SLURM_STEP_NODELIST": ""}
    adopt_slurm_environment(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.7", "4000")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        # torchrun and deepspeed inside srun: their ranks are the ranks
        TASK | {"RANK": "0", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"},
        TASK | {"RANK": "0", "WORLD_SIZE": "8", "CROSS_RANK": "0"},
        # an interactive shell, in which somebody starts ranks by hand
        ALONE | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4000"},
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"},  # a batch script
        {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "4294967291"},  # by its step
    ],
)
def test_what_is_not_a_task_of_srun_is_left_alone(environment):
    before = dict(environment)
    assert not adopt_slurm_environment(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("left", "values"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, ("'0'", "4")),
        ({"RANK": "4", "WORLD_SIZE": "1"}, ("'1'", "5")),
        ({"WORLD_SIZE": "8"}, ("'8'", "5")),
        ({"RANK": "", "WORLD_SIZE": ""}, ("''", "4")),
        ({"MASTER_ADDR": "localhost"}, ("'localhost'", "3 nodes")),
        ({"MASTER_ADDR": "127.0.1.1"}, ("'127.0.1.1'", "3 nodes")),
    ],
)
def test_ranks_left_over_from_another_launch_are_refused_with_both_values(left, values):
    """With them, rank 0 of several nodes trained alone, while the others waited for it."""
    environment = TASK | left
    with pytest.raises(UserError) as caught:
        adopt_slurm_environment(environment)
    assert all(value in str(caught.value) for value in values)
    assert "unset RANK WORLD_SIZE" in str(caught.value)
    assert environment["RANK"] == "4", "one rank of all is to say it"


def test_a_wrapper_that_passes_slurms_own_numbers_on_is_right():
    environment = TASK | {"RANK": "4", "WORLD_SIZE": "5", "LOCAL_RANK": "7", "MASTER_ADDR": "gpu009"}
    assert adopt_slurm_environment(environment)
    assert [environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["4", "5", "0"]


def test_one_task_alone_is_not_disturbed_by_what_is_left_over():
    environment = ALONE | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4000"}
    assert adopt_slurm_environment(environment)
    assert environment["WORLD_SIZE"] == "1"


@pytest.mark.parametrize("missing", sorted(TASK))
def test_a_missing_variable_is_named_and_localhost_is_never_assumed(missing):
    environment = {name: value for name, value in TASK.items() if name != missing}
    with pytest.raises(UserError, match=missing):
        adopt_slurm_environment(environment)
    assert "RANK" not in environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_PROCID", "first"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(y2)"),
        ("SLURM_NODEID", "3"),
        ("SLURM_STEP_NODELIST", "n[1-"),
    ],
)
def test_a_value_that_makes_no_sense_is_shown(name, value):
    with pytest.raises(UserError) as caught:
        adopt_slurm_environment(TASK | {name: value})
    assert value in str(caught.value)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node", "node"),
        ("a-1.cluster,b", "a-1.cluster"),
        ("n[1-2]", "n1"),
        ("gpu[003-010,015],cpu1", "gpu003"),
        ("n[7,9]", "n7"),
        ("rack[2-3]n[08-15,20],login1", "rack2n08"),
    ],
)
def test_first_host_of_a_list(nodelist, host):
    assert first_host(nodelist) == host
