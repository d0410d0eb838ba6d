"""All checks, in the order in which a run would meet what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmscale.distributed.ranks import read_place
from llmscale.doctor import machine
from llmscale.doctor.finding import Finding


def examine(folder: Path, ranks: int | None = None, slurm: bool = False, wait: float = 120) -> Iterator[Finding]:
    """The findings, each as soon as it is known.

    Under a launcher of several ranks (`srun`, torchrun) the links between these are measured, and this is for all of
    them; rank 0 alone looks at its machine.

    Args:
        folder: where runs are to lie.
        ranks: to start on this machine for the links; one for each GPU, else two, when not given.
        slurm: whether to look at Slurm too.
        wait: seconds that a small job may wait in the queue.
    """
    place = read_place()
    if place.rank == 0:
        yield from machine.examine_packages()
        yield from machine.examine_memory()
        yield from machine.examine_network()
        yield from machine.examine_folder(folder)
        yield from machine.examine_deepspeed()
        yield from machine.examine_gpus()
    from llmscale.doctor.links import examine_local_links, measure_links

    if place.size > 1:
        yield from measure_links()
    else:
        yield from examine_local_links(ranks or _default_ranks())
    if slurm and place.rank == 0:
        from llmscale.doctor.slurm import examine_slurm

        yield from examine_slurm(folder, wait)


def _default_ranks() -> int:
    import torch

    return max(2, torch.cuda.device_count()) if torch.cuda.device_count() != 1 else 1
