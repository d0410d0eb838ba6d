"""The links between ranks: all-reduce over gloo and NCCL, and how far the nodes' clocks are apart.

`python -m llmscale.doctor.links FILE` is one of several ranks; rank 0 writes the findings as JSON.
"""

from __future__ import annotations

import dataclasses
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.base.durable import read_json, write_json
from launcher.local import run_ranks
from llmscale.distributed.ending import last_block
from llmscale.distributed.process_group import gather_objects, join, leave, read_world
from llmscale.distributed.ranks import read_place
from llmscale.doctor.finding import Finding

_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
_SLOW = {"cpu": 0.1e9, "cuda": 5e9}
"""Bytes per second of bus bandwidth below which something is wrong: a slow network, or NCCL without its fast path."""
_FIX = {
    "cpu": "name the fast network by LLMSCALE_INTERFACE",
    "cuda": "look with NCCL_DEBUG=INFO at the transport that it takes; name the network by LLMSCALE_INTERFACE",
}
_REPEATS = 5
_CLOCK_SECONDS = 5.0


def measure_links() -> list[Finding]:
    """Between all ranks of this launch, as they are; collective."""
    world = read_world("auto")
    join(world)
    try:
        hosts = gather_objects(socket.gethostname())
        if len(hosts) == 1:
            return [Finding("pass", "links", "one rank, which talks to nobody")]
        where = f"{len(hosts)} ranks on {len(set(hosts))} node(s)"
        devices = ["cpu", *(["cuda"] if world.device.type == "cuda" else [])]
        findings = []
        for device in devices:
            rate = _bus_bandwidth(torch.device(device) if device == "cpu" else world.device, _BYTES[device])
            slow = rate < _SLOW[device]
            name = {"cpu": "gloo", "cuda": "NCCL"}[device]
            text = f"all-reduce of {_BYTES[device] >> 20} MiB between {where}: {rate / 1e9:.2f} GB/s of bus bandwidth"
            findings.append(Finding("warn" if slow else "pass", name, text, _FIX[device] if slow else ""))
        return [*findings, _clocks(hosts)]
    finally:
        leave()


def _bus_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second by the convention of NVIDIA's nccl-tests: 2 (n - 1) / n times the bytes over the time."""
    data = torch.ones(size // 4, device=device)
    ranks = dist.get_world_size()
    dist.all_reduce(data)
    best = float("inf")
    for _ in range(_REPEATS):
        data.fill_(1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        dist.all_reduce(data)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    if float(data[0]) != ranks:
        raise AssertionError(f"the sum of {ranks} ones is {float(data[0])}")
    slowest = max(gather_objects(best))
    return 2 * (ranks - 1) / ranks * size / slowest


def _clocks(hosts: list[str]) -> Finding:
    gather_objects(None)
    times = gather_objects(time.time())
    apart = max(times) - min(times)
    if apart > _CLOCK_SECONDS:
        late, early = hosts[times.index(min(times))], hosts[times.index(max(times))]
        fix = "set them by NTP: times in logs and records would mislead"
        return Finding("warn", "clocks", f"{early} is {apart:.0f} s ahead of {late}", fix)
    return Finding("pass", "clocks", f"at most {apart:.2f} s apart")


def examine_local_links(ranks: int) -> list[Finding]:
    """Start so many ranks on this machine, and measure between them."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "findings.json"
        code = run_ranks([sys.executable, "-m", "llmscale.doctor.links", str(answer)], ranks, Path(folder) / "logs")
        found = read_json(answer)
    if code or not isinstance(found, list):
        text = f"{ranks} ranks on this machine ended with code {code} and no figures"
        return [Finding("fail", "links", text, "see above for what a rank said")]
    return [Finding(**each) for each in found]


def main() -> None:
    """Entry point of one rank."""
    with last_block():
        findings = measure_links()
        if read_place().rank == 0:
            write_json(Path(sys.argv[1]), [dataclasses.asdict(each) for each in findings])


if __name__ == "__main__":
    main()
