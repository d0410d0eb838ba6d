"""Fine-tuning on CPU beside transformers' Trainer: BERT on SST-2 (whole, LoRA, the head alone) and a T5 on Multi30k.

    python -m benchmarks.finetune --data-root CORPORA [--only classification lora seq2seq head] [--steps 60]

Every contender is a process of its own that takes single steps of its own training loop, in turn with the others: the
same sizes, rows, batch, optimizer and vocabulary, without dropout. A Trainer pads each batch to its longest row, as
DataCollatorWithPadding and DataCollatorForSeq2Seq do. The head is compared by the time of all steps of some epochs,
what the body is computed for included. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.finetune_contenders import BATCH, build_ours, build_theirs, prepare
from benchmarks.harness import Contender, Sample, alternate, bar, ratio, report, serve

BARS = {"classification": 1.2, "lora": 1.0, "seq2seq": 1.3, "head": 5.0}
"""How many times as fast as the Trainer each must be; with LoRA the Trainer has peft's layers."""
HEAD_ROWS = 1024
"""Rows of SST-2 that the head alone is trained on."""
SIDES = {"ours": build_ours, "trainer": build_theirs}


def _measure(kind: str, folder: Path, warmup: int, steps: int, threads: int) -> dict[str, list[Sample]]:
    contenders: list[Contender] = []
    try:
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.finetune", "--serve", f"{kind}:{side}:{folder}"]
            contenders.append(Contender(side, command, env={"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}))
        alternate(contenders, warmup=warmup, steps=steps)
    finally:
        for contender in contenders:
            contender.close()
    return {contender.name: contender.samples for contender in contenders}


def _figures(samples: list[Sample]) -> dict[str, Any]:
    return {
        "steps": len(samples),
        "median_ms": round(1e3 * statistics.median(sample.wall for sample in samples), 2),
        "total_seconds": round(sum(sample.wall for sample in samples), 2),
        "cpu_seconds": round(sum(sample.cpu for sample in samples), 2),
        "first_loss": round(samples[0].value, 4),
        "last_loss": round(samples[-1].value, 4),
    }


def _serve(place: str) -> None:
    kind, side, folder = place.split(":", 2)
    serve(partial(SIDES[side], kind, Path(folder)))


def main() -> None:
    """Run as a program; with --serve, be one contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path, help="folder that has sst2/ and multi30k/")
    parser.add_argument("--only", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--steps", type=int, default=60, help="recorded steps of each contender")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10, help="of the head alone")
    parser.add_argument("--threads", type=int, default=2, help="of each contender")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve)
        return
    if arguments.data_root is None:
        parser.error("--data-root is missing")
    figures: dict[str, Any] = {"threads": arguments.threads, "batch": BATCH}
    bars: list[dict[str, Any]] = []
    for kind in arguments.only:
        with tempfile.TemporaryDirectory(prefix="llmscale-finetune-") as folder:
            prepare(kind, arguments.data_root, Path(folder), HEAD_ROWS if kind == "head" else None)
            whole = kind == "head"
            steps = arguments.epochs * HEAD_ROWS // BATCH if whole else arguments.steps
            found = _measure(kind, Path(folder), 0 if whole else arguments.warmup, steps, arguments.threads)
        figures[kind] = {side: _figures(samples) for side, samples in found.items()}
        if whole:
            ours, theirs = (
                [Sample(sum(s.wall for s in side), sum(s.cpu for s in side), 0.0)] for side in found.values()
            )
        else:
            ours, theirs = found["ours"], found["trainer"]
        for clock in ("wall", "cpu"):
            bars.append(
                bar(f"{kind}: speed over the Trainer ({clock})", ratio(theirs, ours, clock), at_least=BARS[kind])
            )
    report("finetune", figures, bars)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
