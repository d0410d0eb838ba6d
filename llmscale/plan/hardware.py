"""What a GPU and its links can do: published figures, or those of the user's machine.

Sources, by field. "Azure" is Azure/AI-benchmarking-guide on GitHub, Azure_Results (September 2024), measured on the
very cards of this table; "NCCL" is NVIDIA/nccl on GitHub, src/graph/tuning.cc (ncclTunerConstantsDefaults, June 2026).

- *peaks, memory, bandwidths*: NVIDIA's data sheets: A100 80GB SXM (2021), H100 SXM (2023), H200 SXM (2024): dense
  tensor cores without sparsity, bf16 (equal to fp16) and plain fp32; HBM bandwidth; NVLink counted in one direction,
  half of the 600 and 900 GB/s that the sheets print for both. Capacity as nvidia-smi shows it: 81,920, 81,559 and
  143,771 MiB.
- *multiprocessors, clock*: NVIDIA A100 white paper (2020), table 4: 108, 1.41 GHz; H100 white paper (2022), table 3:
  132, and the clock to which the peak belongs: 1.83 GHz = 989.4 TFLOP/s / (132 x 4096 operations a clock).
- *l2_bytes_per_clock*: A100 white paper, page 35: 5120 bytes read a clock. Assumed for the H100 too, for which NVIDIA
  gives none: Luo et al. 2024 (arXiv 2402.13499), table V, measured 4472 on an H800 PCIe, but clusters of
  multiprocessors share what they read, so that the cache feeds more than that.
- *matmul_fraction*: the best rate of a large product of random values, held at the power limit, against the peak.
  A100: Azure, 16384 x 16384 x 16384 after 10,000 warming ones: 256.5 of 312 TFLOP/s. H200: 755 of 989, maximum
  sustainable matmul FLOPS by Bekman's mamf-finder (stas00/ml-engineering, 2026; its first version gave 708.5). Assumed
  for the H100, which is the same chip at the same power.
- *dram_latency*: Luo et al. 2024, table IV: 466.3 cycles on an A100 PCIe, 478.8 on an H800 PCIe; assumed to be as many
  on the SXM cards.
- *memory_fraction*: Azure, BabelStream's triad: 1.70 of 2.039 TB/s on A100, 2.97 of 3.35 on H100, 4.15 of 4.8 on H200.
- *attention_forward, attention_backward*: of FlashAttention-2. Dao 2023 (arXiv 2307.08691), section 1: up to 73 % and
  63 % of the peak on A100. Shah et al. 2024 (arXiv 2407.08608), abstract: 35 % on H100. These are rates of long
  sequences: at 2,048 tokens, causal, heads of 128, both passes together reach 155 TFLOP/s, 50 %, on A100 and 265,
  27 %, on H100 (plots in the README of Dao-AILab/flash-attention).
- *kernel_gap*: Gray 2019, "Getting Started with CUDA Graphs" (NVIDIA blog): 3.8 us for each kernel of 2.9 us when they
  are launched one after the other, on a V100. Assumed for all.
- *link_fraction*: bus bandwidth of NCCL's all-reduce over the data sheet's, 8 GPUs. A100: Azure, 231.6 of 300 GB/s at
  8 GB. Hopper: 370 of 450 without in-switch reduction, NCCL's maintainer in NVIDIA/nccl-tests issue 212.
- *network*: of each GPU's own adapter: DGX A100 8 x 200 Gb/s HDR (Narayanan et al. 2021, section 5), DGX H100 and H200
  8 x 400 Gb/s NDR (NVIDIA's data sheets). *network_fraction*: at best 96 of 100 GB/s of four HDR adapters
  (NVIDIA/nccl-tests issue 119); 48 to 49 of 50 GB/s of an NDR adapter (NVIDIA in issue 267).
- *link_latency, network_latency*: NCCL, hwLatencies of a ring's step with the Simple protocol: 3.4 us over NVLink,
  14 us over the network. Its other protocols have less, and are not modelled.
- *gpus_per_node*: DGX and HGX A100, H100, H200: 8.
- *published*: what tests/plan/test_published_times.py finds; for the H200 that of the H100.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.base.durable import parse_json, read_text
from data_pipeline.base.errors import UserError
from llmscale.config.yaml_files import load_yaml


@dataclass(frozen=True)
class Published:
    """How iterations that others published compare with forecasts of them: published over forecast seconds."""

    runs: int
    median: float
    low: float
    """That of the run at 5 %, counted from the smallest."""
    high: float
    """That of the run at 95 %."""
    source: str

    def interval(self, seconds: float) -> tuple[float, float]:
        """Between which nine of ten runs lie whose forecast is `seconds`."""
        return seconds * self.low, seconds * self.high


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
    memory_fraction: float
    l2_bytes_per_clock: float = 5120
    network_fraction: float = 0.96
    kernel_gap: float = 0.9e-6
    link_latency: float = 3.4e-6
    network_latency: float = 14e-6
    gpus_per_node: int = 8
    source: str = "data sheets and published measurements (llmscale/plan/hardware.py)"
    published: Published | None = None
    """None: no runs were compared with forecasts."""

    def peak(self, element: int) -> float:
        """Peak in the arithmetic of `element` bytes."""
        return self.bf16_peak if element == 2 else self.fp32_peak


A100 = Hardware(
    "A100 80GB SXM", 312e12, 19.5e12, 81920 * 2**20, 2.039e12, 108, 1.41e9, 466.3 / 1.41e9, 300e9, 25e9,
    256.5 / 312, 0.73, 0.63, 231.6 / 300, 1.70 / 2.039,
    published=Published(71, 1.27, 1.04, 1.81, "LLM Foundry's on A100 and Narayanan et al. 2021"),
)  # fmt: skip
H100 = Hardware(
    "H100 SXM", 989.4e12, 67e12, 81559 * 2**20, 3.35e12, 132, 1.83e9, 478.8 / 1.83e9, 450e9, 50e9,
    755 / 989, 0.35, 0.35, 370 / 450, 2.97 / 3.35,
    published=Published(70, 1.42, 1.22, 1.77, "LLM Foundry's on H100"),
)  # fmt: skip
H200 = replace(H100, name="H200 SXM", memory=143771 * 2**20, memory_bandwidth=4.8e12, memory_fraction=4.15 / 4.8)
TABLE = {"a100": A100, "h100": H100, "h200": H200}
"""By the name that --hardware takes."""


_DEVICES = {r"H200(?! NVL)": H200, r"H100 (80GB HBM3|SXM)": H100, "A100": A100}
"""How the driver names the cards of the table; others of the same chip, such as H100 PCIe, have another clock."""


def hardware_of(device: str) -> Hardware | None:
    """The row of a GPU by the name that its driver gives, such as `NVIDIA H100 80GB HBM3`; None for one without."""
    return next((row for pattern, row in _DEVICES.items() if re.search(pattern, device)), None)


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


_MOST = 1e30
"""A figure above it is a mistake, and so is one that is not finite."""


def calibrated(row: Hardware, path: Path) -> Hardware:
    """`row` with the fields of a calibration file: a JSON or YAML mapping from names of `Hardware` to numbers.

    Raises:
        UserError: the file cannot be read, names a field that there is not, or gives no positive number.
    """
    given = _mapping(path)
    known = {field.name for field in fields(Hardware)} - {"published"}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{path}: '{key}' is no figure of the hardware; it knows {', '.join(sorted(known))}")
        if key in ("name", "source"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST:
            shown = repr(value)[:100] if not isinstance(value, int) or value.bit_length() < 1000 else "a huge integer"
            raise UserError(f"{path}: '{key}' is {shown}, but must be a number above 0, in bytes, operations or s")
        if key.endswith("_fraction") and value > 1:
            raise UserError(f"{path}: '{key}' is {value}, but is a fraction of the peak; give at most 1")
    return replace(row, **({"source": str(path), "published": None} | given))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"cannot read calibration file {path}: {reason}; give a JSON or YAML file") from None
    try:
        given = parse_json(text) if path.suffix == ".json" else load_yaml(text)
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
