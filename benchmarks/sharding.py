"""Seconds of a step under ZeRO by the settings that decide how much is communicated at a time.

    python -m benchmarks.sharding [--rounds 3] [--steps 6] [--layers 4] [--hidden 512] [--length 256]

Two data-parallel replicas on CPU ranks over gloo, one thread each. Settings take turns, round by round, in new ranks; a
figure is the median of all steps but the first of each start. On a GPU other sizes will be best: its network differs,
and communication overlaps with computing, which it does not on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import machine
from benchmarks.memory import REPLICAS, config_of, start_on_rank
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.process_group import leave
from llmscale.parity.ranks import run_ranks

SETTINGS: list[tuple[int, dict[str, Any]]] = [
    *((stage, {"bucket_elements": size}) for stage in (1, 2, 3) for size in (500_000, 5_000_000, 50_000_000)),
    (3, {"param_persistence_threshold": 0}),
    (3, {"max_live_parameters": 0}),
    (3, {"max_live_parameters": 5_000_000}),
    (3, {"compile": True}),
]
"""ZeRO stage and what differs from the defaults."""


def seconds_on_rank(config: RunConfig, steps: int) -> list[float]:
    """Of each step after the first."""
    _, train = start_on_rank(config)
    found = []
    for step in range(steps + 1):
        start = time.perf_counter()
        train(step)
        found.append(time.perf_counter() - start)
    leave()
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("steps", 6), ("layers", 4), ("hidden", 512), ("length", 256), ("micro", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = vars(parser.parse_args())
    rounds, steps = sizes.pop("rounds"), sizes.pop("steps")
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for stage, settings in SETTINGS:
            raw = config_of("gpt2", stage, 1, **sizes).model_dump(mode="json")
            raw["engine"] = {"zero_stage": stage, **settings}
            raw["run"] |= {"threads": 1}
            name = f"zero={stage} " + " ".join(f"{key}={value:,}" for key, value in settings.items())
            seconds = run_ranks(REPLICAS, seconds_on_rank, parse_config(raw), steps, timeout=600)[0]
            found.setdefault(name, []).extend(seconds)
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    table = Table(title=f"milliseconds of a step: {sizes}")
    for column in ("setting", "median", "least", "most"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for name, seconds in found.items():
        table.add_row(name, *(f"{1000 * of(seconds):,.0f}" for of in (statistics.median, min, max)))
    Console(stderr=True).print(table)
    figures = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(json.dumps({"benchmark": "sharding", "machine": machine(), "sizes": sizes, "figures": figures, "bars": []}))


if __name__ == "__main__":
    main()
