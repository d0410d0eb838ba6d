"""Evaluation beside lm-evaluation-harness's `hf` backend: the same exported checkpoint, the same requests.

    python -m benchmarks.evaluate [--data-root DIR] [--items N] [--repeats N]

One JSON line: for each task the ratio of times (theirs at their best batch size by ours, medians of alternating runs)
and the largest difference of a request's log-probability, in nats.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine
from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import parse_config
from llmscale.evaluate.tasks import load_tasks
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.parallel.init import build

TASKS = {
    "lambada": "eval/lambada_openai.jsonl",
    "piqa": "eval/piqa.validation.jsonl",
    "sciq": "eval/sciq.validation.jsonl",
    "arc_easy": "eval/ai2_arc_ARC-Easy.validation.jsonl",
}
BATCHES = (8, 16, 32)
_TEXT = "tinystories/tinystories_sample_2M.txt"


def write_model(folder: Path, data: Path, size: dict[str, int]) -> Path:
    """A GPT-2 with drawn weights and a vocabulary trained on text."""
    config = parse_config(
        {
            "run": {"directory": "r"},
            "data": {
                "sources": [{"paths": [str(data)]}],
                "tokenizer": {"kind": "sentencepiece", "train": {"vocab_size": 8000}},
                "sequence_length": 512,
            },
            "model": {"family": "gpt2", "max_positions": 1024, "init_std": 0.05, **size},
        }
    )
    kept = folder.with_name("tokenizer")
    tokenizer = prepare_tokenizer(config.data, kept)
    files = {file.name: file.read_bytes() for file in kept.iterdir()}
    model = build(config.model, config.model.vocabulary(tokenizer.vocab_size), seed=1)
    folder.mkdir()
    tensors = ((name, value.detach()) for name, value in model.named_parameters())
    write_whole(folder, tensors, RunState(samples=0, config=config.model_dump(mode="json")), files)
    return folder


def requests_of(name: str, path: Path, items: int) -> list[tuple[str, str]]:
    """Contexts and continuations of a task, as both get them."""
    (task,) = load_tasks([name], [f"{name}={path}"]).tasks
    return [(item.context_of(place), answer) for item in task.items(items) for place, answer in enumerate(item.answers)]


def theirs(folder: Path, batch: int) -> Callable[[list[tuple[str, str]]], list[float]]:
    """The harness's own backend."""
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch)
    return lambda requests: [value for value, _ in model.loglikelihood(_instances(requests), disable_tqdm=True)]


def ours(folder: Path) -> Callable[[list[tuple[str, str]]], list[float]]:
    """Our scorers, asked through the same interface."""
    from llmscale.evaluate.lm_eval import Guest

    model = Guest(str(folder))
    return lambda requests: [value for value, _ in model.loglikelihood(_instances(requests))]


def _instances(requests: list[tuple[str, str]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(requests)]


def compare(
    contenders: dict[str, Callable[[list[tuple[str, str]]], list[float]]],
    requests: list[tuple[str, str]],
    repeats: int,
) -> dict[str, Any]:
    """Times of all contenders, one after the other in turns, and how far their values are apart."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    values: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in random.sample(list(contenders), len(contenders)):
            started = time.perf_counter()
            values[name] = contenders[name](requests)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in times.items()}
    best = min((name for name in medians if name != "llmscale"), key=lambda name: medians[name])
    return {
        "requests": len(requests),
        "ratio": round(medians[best] / medians["llmscale"], 3),
        "their_best": best,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "largest_difference": max(abs(a - b) for a, b in zip(values["llmscale"], values[best], strict=True)),
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with eval/ and tinystories/")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    options = parser.parse_args()
    from llmscale.hugging_face.importing import import_directory

    size = {"layers": options.layers, "hidden_size": options.hidden_size, "heads": options.hidden_size // 64}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", options.data_root / _TEXT, size)
        export_checkpoint(model, folder / "exported")
        import_directory(folder / "exported", folder / "imported")
        contenders = {f"hf batch {batch}": theirs(folder / "exported", batch) for batch in BATCHES}
        contenders["llmscale"] = ours(folder / "imported")
        result: dict[str, Any] = {"benchmark": "evaluate", **machine(), "threads": torch.get_num_threads(), **size}
        for task in options.tasks:
            requests = requests_of(task, options.data_root / TASKS[task], options.items)
            result[task] = compare(contenders, requests, options.repeats)
            print(task, result[task], file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
