"""What a GPU and its links can do: published figures, or those of the user's machine.

Sources, by field:

- *peaks, memory, bandwidths*: NVIDIA's data sheets: A100 80GB SXM (2021), H100 SXM (2023), H200 SXM (2024): dense
  tensor cores without sparsity, bf16 (equal to fp16) and plain fp32; HBM bandwidth; NVLink counted in one direction,
  half of the 600 and 900 GB/s that the sheets print for both. Capacity as nvidia-smi shows it: 81,920, 81,559 and
  143,771 MiB.
- *multiprocessors, clock, L2*: NVIDIA A100 white paper (2020), table 1 and "A100 L2 cache": 108 SMs, 1.41 GHz, 5120
  bytes read a clock; H100 white paper (2022), table 3: 132 SMs. The peak of the H100 belongs to 1.83 GHz (989.4 TFLOP/s
  / (132 SMs x 4096 operations a clock)); its L2 is taken as wide as the A100's, nothing else being published.
- *matmul_fraction*: the best rate of a large bf16 product that a GPU holds at its power limit, against the peak:
  Bekman, "Machine Learning Engineering", comparison table of maximum sustainable matmul FLOPS (2026): H200 SXM 755 of
  989 TFLOP/s, taken for the H100, which is the same chip; A100 258 of 312, measured on the PCIe card alone (bursts of
  the SXM card reach 271).
- *dram_latency*: Luo et al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via
  Microbenchmarking", table of latencies: 466 cycles on A100, 479 on H100.
- *memory_fraction*: BabelStream 5.0 triad: 3,304 of 3,938 GB/s on an H100 NVL, 3,315 of 4,000 on a GH200; taken for the
  A100 too.
- *attention_forward, attention_backward*: Dao 2023 (FlashAttention-2), section 4.1: up to 73 % and 63 % of the peak on
  A100; Shah et al. 2024 (FlashAttention-3), abstract: FlashAttention-2 reaches 35 % on H100.
- *kernel_gap*: Gray 2019, "Getting Started with CUDA Graphs" (NVIDIA blog): 3.8 us for each kernel of 2.9 us when they
  are launched one after the other.
- *link_fraction*: bus bandwidth of NCCL over the data sheet's: A100 232.5 of 300 GB/s on 8 GPUs (nccl-tests issue 175);
  Hopper 370 of 450 (NCCL's maintainer in nccl-tests issue 212, without in-switch reduction).
- *network*: of each GPU's own adapter: DGX A100 8 x 200 Gb/s HDR (Narayanan et al. 2021, section 5), DGX H100 and H200
  8 x 400 Gb/s NDR (NVIDIA's data sheets); *network_fraction*: 96 of 100 GB/s of four HDR adapters (nccl-tests issue
  119).
- *link_latency, network_latency*: a step of a ring with the Simple protocol in NCCL's own model (src/graph/tuning.cc,
  hwLat): 3.4 us over NVLink, 14 us over the network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in its node. Rates are per second of one GPU: operations, bytes."""

    name: str
    bf16_peak: float
    fp32_peak: float
    memory: float
    memory_bandwidth: float
    multiprocessors: int
    clock: float
    dram_latency: float
    link_bandwidth: float
    network_bandwidth: float
    matmul_fraction: float
    attention_forward: float
    attention_backward: float
    link_fraction: float
    l2_bytes_per_clock: float = 5120
    memory_fraction: float = 0.84
    network_fraction: float = 0.96
    kernel_gap: float = 0.9e-6
    link_latency: float = 3.4e-6
    network_latency: float = 14e-6
    gpus_per_node: int = 8
    source: str = "data sheets and published measurements (llmscale/plan/hardware.py)"

    def peak(self, element: int) -> float:
        """Peak in the arithmetic of `element` bytes."""
        return self.bf16_peak if element == 2 else self.fp32_peak


A100 = Hardware(
    "A100 80GB SXM", 312e12, 19.5e12, 81920 * 2**20, 2.039e12, 108, 1.41e9, 466 / 1.41e9, 300e9, 25e9, 258 / 312,
    0.73, 0.63, 232.5 / 300,
)  # fmt: skip
H100 = Hardware(
    "H100 SXM", 989.4e12, 67e12, 81559 * 2**20, 3.35e12, 132, 1.83e9, 479 / 1.83e9, 450e9, 50e9, 755 / 989, 0.35, 0.35,
    370 / 450,
)  # fmt: skip
H200 = replace(H100, name="H200 SXM", memory=143771 * 2**20, memory_bandwidth=4.8e12)
TABLE = {"a100": A100, "h100": H100, "h200": H200}
"""By the name that --hardware takes."""


def hardware_named(name: str, calibration: Path | None = None) -> Hardware:
    """A row of the table, with what a calibration file says in place of it.

    Raises:
        UserError: no such row, or a file that is none.
    """
    if name.lower() not in TABLE:
        raise UserError(
            f"--hardware is {name}, which the table does not have; use one of {', '.join(TABLE)}, and --calibration for"
            " what was measured on another machine"
        )
    row = TABLE[name.lower()]
    return row if calibration is None else calibrated(row, calibration)


def calibrated(row: Hardware, path: Path) -> Hardware:
    """`row` with the fields of a calibration file: a JSON or YAML mapping from names of `Hardware` to numbers.

    Raises:
        UserError: the file cannot be read, names a field that there is not, or gives no positive number.
    """
    given = _mapping(path)
    known = {field.name for field in fields(Hardware)}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{path}: '{key}' is no figure of the hardware; it knows {', '.join(sorted(known))}")
        if key in ("name", "source"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{path}: '{key}' is {value!r}, but must be a number above 0, in bytes, operations or s")
        if key.endswith("_fraction") and value > 1:
            raise UserError(f"{path}: '{key}' is {value}, but is a fraction of the peak; give at most 1")
    return replace(row, **({"source": str(path)} | given))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read calibration file {path}: {reason}; give a JSON or YAML file") from None
    try:
        given = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise UserError(
            f"{path} is neither valid JSON nor YAML; give a mapping such as 'matmul_fraction: 0.8'"
        ) from None
    if not isinstance(given, dict):
        raise UserError(f"{path} must hold a mapping such as 'matmul_fraction: 0.8', but holds {type(given).__name__}")
    # YAML reads 267.9e12 as text, since it wants a sign in the exponent.
    return {str(key): _number(value) for key, value in given.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
