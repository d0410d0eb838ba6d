"""Which GPU a rank takes."""

from __future__ import annotations

from collections.abc import Iterable


def gpu_of(local_rank: int, visible: int) -> int:
    """Index, among the GPUs that a rank sees, of its own.

    Ranks of a node that all see the same GPUs take one each. Where a scheduler shows each rank its own only, as Slurm's
    `--gpus-per-task` and `--gpu-bind` do, they number them from 0 each for itself.

    Args:
        local_rank: of the rank on its node.
        visible: how many GPUs it sees, at least one.
    """
    return local_rank % visible


def shared_gpu(claims: Iterable[tuple[int, str, str]]) -> str:
    """What is wrong where two ranks have taken one GPU; empty otherwise.

    Args:
        claims: rank, host and the GPU's own identifier, empty for a rank without one.
    """
    owners: dict[tuple[str, str], int] = {}
    for rank, host, gpu in claims:
        other = owners.setdefault((host, gpu), rank)
        if gpu and other != rank:
            return (
                f"ranks {other} and {rank} on {host} have the same GPU ({gpu}); start at most one rank for each GPU,"
                " and let each see the GPUs of its node or one of its own (CUDA_VISIBLE_DEVICES)"
            )
    return ""
