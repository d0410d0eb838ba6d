"""Four small runs, one of each way to learn, on text that is drawn by seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

SHARED: dict[str, Any] = {
    "run": {"directory": "run", "threads": 1, "device": "cpu"},
    "data": {
        "sources": [{"paths": ["text.txt"], "document": "line"}],
        "tokenizer": {"kind": "bytes"},
        "sequence_length": 24,
        "lanes": 4,
        "span_bytes": 1500,
        "shuffle_buffer": 16,
        "holdout": 0.1,
    },
    "optimizer": {"lr": 0.003, "clip": 0.3},
    "schedule": {"name": "constant", "warmup_steps": 2},
    "train": {"steps": 8, "global_batch": 8, "micro_batch": 2},
    "checkpoint": {"interval": 4, "keep": 1},
    "evaluation": {"interval": 4, "baselines": False},
    "logging": {"interval": 1},
}
SIZES = {"layers": 2, "hidden_size": 16, "heads": 2, "max_positions": 32}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {"model": {"family": "gpt2", **SIZES}, "objective": {"name": "causal", "separate_documents": True}},
    "bert": {"model": {"family": "bert", **SIZES}, "objective": {"name": "masked", "next_sentence": True}},
    "t5": {
        "model": {"family": "t5", **SIZES, "encoder_layers": 2, "ffn_size": 32, "head_size": 8},
        "objective": {"name": "denoising"},
    },
    "experts": {
        "model": {"family": "wu_dao", **SIZES, "experts": {"count": 4, "per_token": 2, "every": 2}},
        "objective": {"name": "causal"},
    },
}
"""What differs, by name."""


def write_case(name: str, folder: Path) -> Path:
    """The text and the config of a case in `folder`, to which its paths are relative; the config's path."""
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(60)]
    lines = (". ".join(" ".join(draw.choices(words, k=5)) for _ in range(3)) for _ in range(150))
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**SHARED, **CASES[name]}))
    return config
