"""Which GPU a rank takes, where each sees all GPUs of its node, some, or only its own. No GPU is needed."""

import concurrent.futures
import os
import socket

import pytest
import torch

from data_pipeline.base.errors import UserError
from llmscale.distributed.gpus import gpu_of, shared_gpu
from llmscale.distributed.meeting import Target, attend, lead
from llmscale.distributed.process_group import _judge, read_world
from llmscale.distributed.ranks import Place
from llmscale.engine.deepspeed.shims import tell_device

# Of 4 ranks on a node of 4 or 8 GPUs: what each sees, in the numbers of the machine.
BINDINGS = {
    "none": ["0123"] * 4,
    "none, with GPUs to spare": ["01234567"] * 4,
    "--gpus-per-task=1": ["0", "1", "2", "3"],
    "--gpu-bind=single:1": ["3", "2", "1", "0"],
    "--gpus-per-task=2": ["01", "23", "45", "67"],
    "by socket": ["01", "01", "23", "23"],
}


@pytest.mark.parametrize("seen", BINDINGS.values(), ids=BINDINGS)
def test_under_any_binding_each_rank_has_a_gpu_of_its_own(seen):
    taken = [gpus[gpu_of(rank, len(gpus))] for rank, gpus in enumerate(seen)]
    assert len(set(taken)) == 4
    assert not shared_gpu((rank, "n1", gpu) for rank, gpu in enumerate(taken))


def test_two_ranks_on_one_gpu_are_named():
    taken = [(0, "n1", "GPU-a"), (1, "n1", "GPU-b"), (2, "n2", "GPU-a"), (3, "n1", "GPU-b")]
    assert "ranks 1 and 3 on n1 have the same GPU (GPU-b)" in shared_gpu(taken)
    assert not shared_gpu([(0, "n1", ""), (1, "n1", "")]), "ranks on the CPU share nothing"


def sees(monkeypatch, gpus: str, rank: int) -> None:
    """This process is a rank of four on one node, and torch sees the GPUs of these numbers."""
    place = {"RANK": rank, "WORLD_SIZE": 4, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 4}
    for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 4000}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))


@pytest.mark.parametrize(("gpus", "index"), [("3", 0), ("0123", 3), ("67", 1)])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_visible_gpu_is_taken_and_deepspeed_told(monkeypatch, gpus, index, device):
    """It was refused with "has 1 GPU(s); start at most one rank per GPU"."""
    sees(monkeypatch, gpus, rank=3)
    world = read_world(device)
    assert world.device == torch.device("cuda", index)
    assert (world.rank, world.local_rank, world.local_size) == (3, 3, 4)
    tell_device(world.device)
    assert os.environ["LOCAL_RANK"] == str(index), "DeepSpeed takes LOCAL_RANK for the index of its GPU"


def test_two_ranks_that_meet_with_one_gpu_are_refused():
    """Such as where a shell or a wrapper set the same CUDA_VISIBLE_DEVICES for all."""
    places = [Place(rank, 2, rank, 2, "127.0.0.1", 0) for rank in range(2)]
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(lead, places[0], listener, b"token", 20.0, _judge, gpu="GPU-a")
        target = Target(range(port, port + 1), b"token")
        second = pool.submit(attend, places[1], lambda: target, 20.0, gpu="GPU-a")
    for end in (first, second):
        assert isinstance(end.exception(), UserError)
        assert "ranks 0 and 1" in str(end.exception())
        assert "have the same GPU (GPU-a)" in str(end.exception())
