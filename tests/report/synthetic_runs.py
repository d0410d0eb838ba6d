"""Run directories that look like real ones: shapes of curves as small GPTs give them, with noise."""

import json
import math
import random
from pathlib import Path
from typing import Any

CONFIG = """run:
  directory: runs/quickstart
  seed: 0
data:
  sources:
  - kind: text
    paths: ['{python_stdlib}/**/*.py']
  sequence_length: 256
train:
  steps: 400
"""


def write_run(
    directory: Path,
    *,
    steps: int = 400,
    interval: int = 1,
    seed: int = 0,
    lr: float = 1e-3,
    evaluation_interval: int = 50,
    finished: bool = True,
    tokens_per_step: int = 4096,
    floor: float = 2.9,
) -> Path:
    """Write config, metrics and (when `finished`) summary, outcome and a checkpoint's manifest."""
    directory.mkdir(parents=True)
    rows = training_rows(steps, interval, seed, lr=lr, tokens_per_step=tokens_per_step, floor=floor)
    if evaluation_interval:
        for step in range(evaluation_interval, steps + 1, evaluation_interval):
            held_out = evaluation(expected_loss(step, steps, floor) + 0.05)
            rows.append({"step": step, "attempt": 0, "evaluation": held_out})
    write_metrics(directory, rows)
    (directory / "config.yaml").write_text(CONFIG, encoding="utf-8")
    if finished:
        write_end(directory, steps, expected_loss(steps, steps, floor) + 0.05, tokens_per_step)
    return directory


def expected_loss(step: int, steps: int, floor: float) -> float:
    """A power law from ln(8192) with the last fall that a decaying learning rate gives."""
    return floor + (math.log(8192) - floor) * (1 + step / (0.01 * steps)) ** -0.55 - 0.25 * (step / steps) ** 3


def training_rows(
    steps: int, interval: int, seed: int, *, lr: float, tokens_per_step: int, floor: float
) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    warmup = max(1, steps // 20)
    rows = []
    for step in range(interval, steps + 1, interval):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (steps - warmup or 1)))
        rate = 11_500 * (1 + draw.gauss(0, 0.03)) * (0.35 if step == interval else 0.7 if draw.random() < 0.02 else 1)
        rows.append(
            {
                "step": step,
                "attempt": 0,
                "loss": expected_loss(step, steps, floor) + draw.gauss(0, 0.07),
                "grad_norm": 0.4 + 6 * math.exp(-step / (0.02 * steps)) + 0.1 * abs(draw.gauss(0, 1)),
                "lr": lr * step / warmup if step < warmup else lr * (0.1 + 0.9 * cosine),
                "samples": step * tokens_per_step // 256,
                "tokens": step * tokens_per_step,
                "tokens_per_second": rate,
                "data_seconds": 0.002,
                "step_seconds": tokens_per_step / rate,
            }
        )
    return rows


def evaluation(loss: float) -> dict[str, float]:
    tokens, size = 412_003, 1_501_217
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) * tokens / size,
        "tokens": tokens,
        "bytes": size,
    }


def write_metrics(directory: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    (directory / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def write_end(directory: Path, steps: int, loss: float, tokens_per_step: int) -> None:
    summary = {
        "steps": steps,
        "loss": loss - 0.05,
        "evaluation": {**evaluation(loss), "documents": 61},
        "baselines": {"xz": {"bits_per_byte": 1.72}, "unigram": {"bits_per_byte": 2.41}},
        "parameters": 7_369_728,
        "seconds": steps * tokens_per_step / 11_500,
        "tokens_per_second": 11_500.0,
        "samples": [
            {"prompt": "def read_", "text": "lines(self, size=-1):\n    if self.closed:\n        raise ValueError\n"},
            {"prompt": "import ", "text": "os\nimport sys <b>&amp;</b>\n"},
        ],
    }
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (directory / "outcome.json").write_text(json.dumps({"outcome": "done", "step": steps}), encoding="utf-8")
    checkpoint = directory / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir(parents=True)
    manifest = {"versions": {"python": "3.11.9", "torch": "2.13.0", "deepspeed": "0.19.8"}}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
