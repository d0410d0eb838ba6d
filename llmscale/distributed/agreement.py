"""What one rank does for all, and what all do and must all succeed in."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

import torch

from data_pipeline.base.errors import UserError
from llmscale.distributed.process_group import alone, broadcast_object, gather_objects

Value = TypeVar("Value")


def on_rank_zero(function: Callable[[], Value]) -> Value:
    """Rank 0's result on every rank; its mistakes are raised on every rank too, so that none waits for ever."""
    outcome: tuple[Value | None, Exception | None] = (None, None)
    if alone() or torch.distributed.get_rank() == 0:
        try:
            outcome = (function(), None)
        except Exception as error:
            outcome = (None, error)
    value, problem = broadcast_object(outcome)
    if problem is not None:
        raise problem
    return value


def together(function: Callable[[], Value]) -> Value:
    """`function()` of each rank; what is wrong on any rank is raised on all, since the others would wait for it."""
    value, problem = None, None
    try:
        value = function()
    except UserError as error:
        problem = error
    for rank, (host, found) in enumerate(gather_objects((socket.gethostname(), problem))):
        if found is not None:
            raise UserError(f"rank {rank} on {host}: {found}" if rank else str(found))
    return value  # type: ignore[return-value]
