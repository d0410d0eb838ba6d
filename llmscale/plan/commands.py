"""What `llmscale plan` does: read the command line, forecast, print."""

from __future__ import annotations

import json
import re
from pathlib import Path

from data_pipeline.base.errors import UserError
from data_pipeline.base.terminal import warn
from llmscale import layout as layouts
from llmscale.config import load_config
from llmscale.plan.hardware import hardware_named
from llmscale.plan.report import Plan, as_dict, show
from llmscale.plan.search import Planner
from llmscale.plan.workload import workload_of

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
"""Bytes of a unit of memory."""


def plan(
    path: Path,
    overrides: tuple[str, ...],
    gpus: int | None,
    gpu_memory: str | None,
    hardware: str,
    calibration: Path | None,
    as_json: bool,
) -> None:
    """Print parameters, operations, the config's own layout, and with `gpus` the layouts that should be fastest.

    Raises:
        UserError: something on the command line or in the config is wrong, or nothing legal fits.
    """
    gpu = hardware_named(hardware, calibration)
    limit = gpu.memory if gpu_memory is None else memory_size(gpu_memory)
    config = load_config(path, overrides, warn)
    layouts.require_possible(config)
    planner = Planner(config, workload_of(config), gpu, limit)
    ranks = gpus or layouts.given_ranks(config.parallel)
    problem = layouts.problem(config, ranks)
    if gpus is None and problem is not None:
        raise UserError(problem.sentence)
    own = None if problem else planner.own(ranks)
    found = [] if gpus is None else planner.search(gpus)
    result = Plan(planner, ranks, own, problem.sentence if problem else None, found)
    if as_json:
        print(json.dumps(as_dict(result), indent=2))
    else:
        show(result)


def memory_size(text: str) -> float:
    """Bytes that a text such as `80GiB` names.

    Raises:
        UserError: it has no number or no unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise UserError(f"--gpu-memory is {text}, which is no size; write a number and its unit, such as 80GiB")
    number, unit = match.groups()
    if not unit:
        raise UserError(f"--gpu-memory is {text}, which has no unit; write {number}GiB")
    if unit.upper() not in UNITS:
        raise UserError(f"--gpu-memory is {text}, whose unit is not known; use one of MiB, GiB, TiB, MB, GB, TB")
    if not float(number):
        raise UserError(f"--gpu-memory is {text}, which holds nothing; give what a GPU has, such as 80GiB")
    return float(number) * UNITS[unit.upper()]
