"""How long one kernel or one collective takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2

from llmscale.plan.hardware import Hardware

TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64))
"""Rows x columns of the result that cuBLAS gives one multiprocessor at a time (NVIDIA, "Matrix Multiplication
Background User's Guide", section 2.3)."""
SPLITS = (1, 2, 3, 4, 6, 8)
"""Parts that the inner dimension may be cut into, so that more multiprocessors have work (cublasLt's split-K). Which
ones, and that a part has 1,024 columns at least, are assumptions."""


@lru_cache(maxsize=1 << 18)
def product(gpu: Hardware, m: int, n: int, k: int, element: int = 2, batch: int = 1) -> float:
    """Seconds of `batch` matrix products (m, k) x (k, n), of values of `element` bytes.

    The result is cut into tiles, which the multiprocessors take in waves; a tile that reaches beyond the edge and a
    wave that is not full cost as much as whole ones ("Matrix Multiplication Background User's Guide", sections 3.1 and
    3.2). Within a wave each multiprocessor computes at the rate of the best large product, unless reading its operands
    from the L2 cache takes longer; a wave is assumed to begin with a wait for memory and to end with another. The whole
    is no faster than memory gives the operands and takes the result (the roofline of Williams et al. 2009). The fastest
    choice of tile and split counts.
    """
    rate = gpu.peak(element) * gpu.matmul_fraction / gpu.multiprocessors
    supply = gpu.l2_bytes_per_clock * gpu.clock / gpu.multiprocessors
    memory = gpu.memory_bandwidth * gpu.memory_fraction
    traffic = batch * element * (m * k + k * n + m * n) / memory
    best = float("inf")
    for rows, columns in TILES:
        tiles = batch * ceil(m / rows) * ceil(n / columns)
        depth = max(2 * rows * columns / rate, element * (rows + columns) / supply)
        for split in SPLITS:
            if split > 1 and (k < 1024 * split or tiles * (split - 1) >= 4 * gpu.multiprocessors):
                break
            waves = ceil(tiles * split / gpu.multiprocessors)
            reduction = 0.0 if split == 1 else 2 * split * batch * m * n * 4 / memory
            best = min(best, waves * (depth * ceil(k / split) + 2 * gpu.dram_latency) + reduction)
    return max(best, traffic) + gpu.kernel_gap


def pass_over(gpu: Hardware, size: float) -> float:
    """Seconds of a kernel that reads and writes `size` bytes and computes little."""
    return size / (gpu.memory_bandwidth * gpu.memory_fraction) + gpu.kernel_gap if size else 0.0


@dataclass(frozen=True)
class Ranks:
    """A group of ranks as the links see it."""

    size: int
    """Ranks of the group."""
    together: int
    """Of them, those in one node."""

    @property
    def nodes(self) -> int:
        return ceil(self.size / self.together)


def ranks(gpu: Hardware, size: int, stride: int) -> Ranks:
    """The group of `size` ranks that are `stride` apart, nodes being filled one after the other."""
    return Ranks(size, max(1, min(size, gpu.gpus_per_node // stride)))


def bandwidth(gpu: Hardware, group: Ranks) -> float:
    """Bytes a second through each rank of a ring over the group. The ranks of a node share its adapters, of which each
    GPU has one; groups side by side, which differ in ranks but not in nodes, have the others."""
    inside = gpu.link_bandwidth * gpu.link_fraction
    if group.nodes == 1:
        return inside
    return min(inside, group.together * gpu.network_bandwidth * gpu.network_fraction)


def gather(gpu: Hardware, size: float, group: Ranks) -> float:
    """Seconds of an all-gather whose result has `size` bytes, or of a reduce-scatter of as many (Thakur et al. 2005:
    a ring sends (n - 1) / n of them). Of its n - 1 steps, one less than there are nodes cross the network (NCCL,
    src/graph/tuning.cc)."""
    if group.size == 1 or not size:
        return 0.0
    steps = (group.size - group.nodes) * gpu.link_latency + (group.nodes - 1) * gpu.network_latency
    return (group.size - 1) / group.size * size / bandwidth(gpu, group) + steps + gpu.kernel_gap


def all_reduce(gpu: Hardware, size: float, group: Ranks) -> float:
    """Seconds of an all-reduce of `size` bytes: twice the traffic; over many nodes in the steps of a tree, up and down
    (NCCL, src/graph/tuning.cc)."""
    if group.size == 1 or not size:
        return 0.0
    hops = log2(group.nodes) if group.nodes > 1 else 0.0
    steps = 2 * ((group.together - 1) * gpu.link_latency + hops * gpu.network_latency)
    return 2 * (group.size - 1) / group.size * size / bandwidth(gpu, group) + steps + gpu.kernel_gap


def exchange(gpu: Hardware, size: float, group: Ranks) -> float:
    """Seconds of an all-to-all in which each rank has `size` bytes: those for other nodes go through its adapter."""
    if group.size == 1 or not size:
        return 0.0
    inside = size * (group.together - 1) / group.size / (gpu.link_bandwidth * gpu.link_fraction)
    outside = size * (group.size - group.together) / group.size / (gpu.network_bandwidth * gpu.network_fraction)
    latency = gpu.network_latency if group.nodes > 1 else gpu.link_latency
    return max(inside, outside) + latency + gpu.kernel_gap


def send(gpu: Hardware, size: float, between_nodes: bool) -> float:
    """Seconds of sending `size` bytes to another rank."""
    if between_nodes:
        return size / (gpu.network_bandwidth * gpu.network_fraction) + gpu.network_latency
    return size / (gpu.link_bandwidth * gpu.link_fraction) + gpu.link_latency
