"""A run that takes seconds: a byte-level model of 2 layers x 32 on generated text."""

import random
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.base.records import read_records


def write_tiny_run(folder: Path, **data: Any) -> Path:
    """Write text and a config into `folder`, to which its paths are relative; `data` goes into the data section."""
    draw = random.Random(20)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(200)]
    for number in range(8):
        lines = (" ".join(draw.choices(words, k=12)) for _ in range(400))
        (folder / f"text-{number}.txt").write_text("\n".join(lines))
    settings = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {
            "sources": [{"paths": ["text-*.txt"], "document": "line"}],
            "tokenizer": {"kind": "bytes"},
            "sequence_length": 32,
            "lanes": 8,
            "span_bytes": 2000,
            "shuffle_buffer": 64,
            "workers": 0,
            **data,
        },
        "model": {"layers": 2, "hidden_size": 32, "heads": 2, "max_positions": 64},
        "train": {"steps": 6, "global_batch": 8, "micro_batch": 2},
        "logging": {"interval": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def losses(run: Path) -> dict[int, float]:
    """Loss by step, as metrics.jsonl has it; empty before the run has begun."""
    metrics = run / "metrics.jsonl"
    return {row["step"]: row["loss"] for row in read_records(metrics) if "loss" in row} if metrics.exists() else {}
