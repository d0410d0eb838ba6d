"""Training steps on one GPU in bf16: this project beside transformers' Llama, both under torch.compile.

    python -m benchmarks.gpu [--sizes 125M 350M 1.3B 3B] [--steps 30]

Weights and both AdamW moments are bf16 in `bare` and `transformers`; `engine` is the trainer's step, with fp32 masters
and moments through DeepSpeed ZeRO 1. The contenders of a size run one after the other, since they share the GPU's
memory. Exits with code 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import (
    Shape,
    Step,
    build_bare_step,
    build_engine_step,
    build_gemm_step,
    build_transformers_step,
)
from benchmarks.harness import Contender, alternate, contender_figures, ratio, report, serve


def _shape(layers: int, hidden: int, heads: int, ffn: int, batch: int) -> Shape:
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        sequence=2048,
        batch=batch,
        vocabulary=50304,
        family="llama",
        ffn=ffn,
        device="cuda",
        dtype="bf16",
        compiled=True,
    )


SIZES = {
    "125M": _shape(12, 768, 12, 2048, batch=16),
    "350M": _shape(24, 1024, 16, 2816, batch=8),
    "1.3B": _shape(24, 2048, 16, 5632, batch=4),
    "3B": _shape(28, 3072, 24, 8192, batch=2),
}

CONTENDERS = {
    "engine": build_engine_step,
    "bare": build_bare_step,
    "transformers": partial(build_transformers_step, compiled=True),
    "gemm": build_gemm_step,
}

PEAKS = {
    "H100 PCIe": (756, "NVIDIA H100 data sheet, dense"),
    "H100 NVL": (835, "NVIDIA H100 NVL data sheet, dense"),
    "H100": (989, "NVIDIA H100 SXM data sheet, dense"),
    "H200": (989, "NVIDIA H200 SXM data sheet, dense"),
    "A100": (312, "NVIDIA A100 data sheet, dense"),
    "L40S": (362, "NVIDIA L40S data sheet, dense"),
}
"""Part of the device's name: bf16 peak in TFLOP/s and where it is written; the first that fits counts."""


def _peak(device: str) -> tuple[int, str] | None:
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def _model_flops(shape: Shape) -> int:
    """Operations of one step as PaLM counts them (Chowdhery et al. 2022, appendix B), attention in full."""
    return shape.flops + 12 * shape.layers * shape.hidden * shape.sequence * shape.tokens_per_step


def _measure(size: str, steps: int, warmup: int) -> dict[str, Contender]:
    """Run the contenders of a size one after the other; one that fails (out of memory) is left out."""
    contenders: dict[str, Contender] = {}
    for name in CONTENDERS:
        print(f"{size}: {name}", file=sys.stderr)
        contender = Contender(name, [sys.executable, "-m", "benchmarks.gpu", "--serve", f"{size}:{name}"])
        try:
            alternate([contender], warmup=warmup, steps=steps)
            contenders[name] = contender
        except RuntimeError as error:
            print(f"{size}: {error}", file=sys.stderr)
        finally:
            contender.close()
    return contenders


def _figures(size: str, contenders: dict[str, Contender], peak: tuple[int, str] | None) -> dict[str, Any]:
    shape = SIZES[size]
    figures: dict[str, Any] = {"shape": asdict(shape)}
    for name, contender in contenders.items():
        figures[name] = contender_figures(contender.samples, shape.tokens_per_step, shape.flops)
        if name != "gemm" and peak is not None:
            seconds = figures[name]["wall_seconds"]
            figures[name]["mfu"] = round(_model_flops(shape) / seconds / (peak[0] * 1e12), 4)
    for mine in ("engine", "bare"):
        if mine in contenders and "transformers" in contenders:
            measured = ratio(contenders["transformers"].samples, contenders[mine].samples, "wall")
            figures[f"speed of {mine} over transformers compiled"] = measured.rounded()
    return figures


def _build(place: str) -> Step:
    size, _, name = place.partition(":")
    return CONTENDERS[name](SIZES[size])


def main() -> int:
    """Run as a program; with --serve, be one contender. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models to train")
    parser.add_argument("--steps", type=int, default=30, help="recorded steps of each contender")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them that are not recorded")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, but torch sees none; run it on a machine with one", file=sys.stderr)
        return 2
    if arguments.serve:
        serve(partial(_build, arguments.serve))
        return 0
    peak = _peak(torch.cuda.get_device_name())
    figures: dict[str, Any] = {"peak": None}
    if peak is not None:
        figures["peak"] = {"bf16_tflops": peak[0], "source": peak[1]}
    for size in arguments.sizes:
        contenders = _measure(size, arguments.steps, arguments.warmup)
        figures[size] = _figures(size, contenders, peak)
    report("gpu", figures, [])
    return 0


if __name__ == "__main__":
    sys.exit(main())
