"""Rank arithmetic against enumeration, and the process groups that come of it."""

import itertools
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from data_pipeline.base.errors import UserError
from llmscale.distributed.process_group import join, leave, read_world
from llmscale.parallel.grid import AXES, RankGrid
from tests.ranks import run_ranks

Sizes = tuple[int, int, int, int]
Place = tuple[int, ...]
"""Coordinates on the axes, outermost (pipeline) first."""


def layouts(world: int) -> list[Sizes]:
    """Every way to lay `world` ranks out over the four axes."""
    divisors = [size for size in range(1, world + 1) if world % size == 0]
    return [
        (p, d, s, world // (p * d * s)) for p, d, s in itertools.product(divisors, repeat=3) if world % (p * d * s) == 0
    ]


def places(sizes: Sizes) -> list[Place]:
    """Coordinates of every rank, in rank order: the last axis counts fastest."""
    return list(itertools.product(*(range(size) for size in sizes)))


def lines(sizes: Sizes, axis: int) -> Iterator[list[int]]:
    """For every rank, the ranks whose place differs from its own on `axis` only."""
    everyone = places(sizes)
    for own in everyone:
        others = [place[:axis] + place[axis + 1 :] == own[:axis] + own[axis + 1 :] for place in everyone]
        yield [rank for rank, same in enumerate(others) if same]


@pytest.mark.parametrize("world", range(1, 25))
def test_every_layout_of_up_to_24_ranks(world: int) -> None:
    for sizes in layouts(world):
        everyone = places(sizes)
        grids = [RankGrid(*sizes, rank=rank) for rank in range(world)]
        assert {grid.world_size for grid in grids} == {world}
        for number, axis in enumerate(AXES):
            assert [grid.coordinate(axis) for grid in grids] == [place[number] for place in everyone]
            assert [grids[0].coordinate(axis, rank) for rank in range(world)] == [place[number] for place in everyone]
            assert [grid.ranks(axis) for grid in grids] == list(lines(sizes, number))
            assert grids[0].size(axis) == sizes[number]
        with pytest.raises(UserError, match=f"rank {world} does not fit"):
            RankGrid(*sizes, rank=world)


def test_what_deepspeed_asks_of_a_megatron_grid() -> None:
    """Tensor-parallel ranks are neighbours; data-parallel ranks are as far apart as there are tensor-parallel ones."""
    grid = RankGrid(data=3, tensor=2, rank=5)
    assert (grid.get_data_parallel_rank(), grid.get_data_parallel_world_size()) == (2, 3)
    assert (grid.get_model_parallel_rank(), grid.get_model_parallel_world_size()) == (1, 2)
    assert grid.ranks("data") == [1, 3, 5]
    assert grid.ranks("tensor") == [4, 5]


def sums_over_groups(grids: list[Sizes]) -> list[list[tuple[list[int], float]]]:
    """For each layout and axis: the members of this rank's group, and the sum over it of 10^rank."""
    join(read_world("cpu"))
    found = []
    for sizes in grids:
        grid = RankGrid(*sizes, rank=dist.get_rank()).with_groups()
        rows = []
        for axis in AXES:
            value = torch.tensor(10.0**grid.rank)
            dist.all_reduce(value, group=grid.group(axis))
            rows.append((dist.get_process_group_ranks(grid.group(axis)), value.item()))
        found.append(rows)
    leave()
    return found


def test_groups_of_four_real_ranks() -> None:
    grids = layouts(4)
    assert (2, 1, 1, 2) in grids
    assert (1, 2, 2, 1) in grids
    for rank, found in enumerate(run_ranks(4, sums_over_groups, grids)):
        for sizes, rows in zip(grids, found, strict=True):
            for axis, (members, total) in enumerate(rows):
                expected = list(lines(sizes, axis))[rank]
                assert members == expected, (sizes, AXES[axis])
                assert total == sum(10.0**member for member in expected), (sizes, AXES[axis])


def joins_late() -> list[int]:
    """Rank 1 makes its groups when rank 0, whose store they need, has long been through."""
    world = read_world("cpu")
    join(world)
    time.sleep(3 * world.rank)
    grid = RankGrid(rank=world.rank, tensor=2).with_groups()
    leave()
    return grid.ranks("tensor")


def test_a_rank_may_make_its_groups_when_rank_0_is_through() -> None:
    assert run_ranks(2, joins_late) == [[0, 1]] * 2
