"""Evaluation beside lm-evaluation-harness's `hf` backend: the same exported checkpoint, the same requests.

    python -m benchmarks.evaluate --data-root DIR [--items N] [--repeats N] [--tasks NAME ...]

One JSON line: for each task the ratios of times (theirs at their best batch size by ours, medians of alternating runs),
of the clock on the wall and of the processor; the largest difference of a request's log-probability, in nats; and of
what is generated greedily, how many texts differ.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from benchmarks.harness import machine
from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import parse_config
from llmscale.evaluate.lm_eval import Guest
from llmscale.evaluate.tasks import load_tasks
from llmscale.evaluate.tasks.kinds.generate import GenerateTask
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.parallel.init import build

TASKS = {
    "lambada": "eval/lambada_openai.jsonl",
    "piqa": "eval/piqa.validation.jsonl",
    "sciq": "eval/sciq.validation.jsonl",
    "arc_easy": "eval/ai2_arc_ARC-Easy.validation.jsonl",
    "squad": "xquad/xquad.en.json",
}
BATCHES = (8, 16, 32)
POSITIONS = 1024
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
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
            "model": {"family": "gpt2", "max_positions": POSITIONS, "init_std": 0.05, **size},
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


def requests_of(name: str, path: Path, items: int, tokenizer: Tokenizer) -> list[Instance]:
    """What both are asked: contexts with continuations, or with when to stop. Of those to be continued only what fits,
    since the harness cuts off the special token in front, too."""
    (task,) = load_tasks([name], [f"{name}={path}"]).tasks
    some = task.items()
    if isinstance(task.settings, GenerateTask):
        room = POSITIONS - task.settings.max_new_tokens
        lengths = map(len, tokenizer.encode_batch([item.contexts[0] for item in some]))
        some = [item for item, length in zip(some, lengths, strict=True) if length < room]
    # Evenly out of all, since neighbours are about one text.
    some = some[:: max(1, len(some) // items)][:items]
    if isinstance(task.settings, GenerateTask):
        until = {"until": task.settings.until, "max_gen_toks": task.settings.max_new_tokens, "do_sample": False}
        return [Instance("generate_until", {}, (item.contexts[0], until), item.number) for item in some]
    pairs = [(item.context_of(place), answer) for item in some for place, answer in enumerate(item.answers)]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def answers_of(model: LM, requests: list[Instance]) -> list[Any]:
    """Log-probabilities, or texts."""
    if requests[0].request_type == "generate_until":
        return model.generate_until(requests, disable_tqdm=True)  # type: ignore[call-arg]
    return [value for value, _ in model.loglikelihood(requests, disable_tqdm=True)]  # type: ignore[call-arg]


def compare(contenders: dict[str, LM], requests: list[Instance], repeats: int) -> dict[str, Any]:
    """Times of all contenders, one after the other in turns, and how far their answers are apart."""
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in contenders} for clock in CLOCKS}
    answers: dict[str, list[Any]] = {}
    order = random.Random(0)
    for _ in range(repeats):
        for name in order.sample(list(contenders), len(contenders)):
            started = {clock: read() for clock, read in CLOCKS.items()}
            answers[name] = answers_of(contenders[name], requests)
            for clock, read in CLOCKS.items():
                times[clock][name].append(read() - started[clock])
    result: dict[str, Any] = {"requests": len(requests)}
    for clock, taken in times.items():
        medians = {name: statistics.median(found) for name, found in taken.items()}
        best = min((name for name in medians if name != "llmscale"), key=lambda name: medians[name])
        result[clock] = {
            "ratio": round(medians[best] / medians["llmscale"], 3),
            "their_best": best,
            "seconds": {name: round(value, 3) for name, value in medians.items()},
        }
    pairs = list(zip(answers["llmscale"], answers[best], strict=True))
    if requests[0].request_type == "generate_until":
        return result | {"texts_that_differ": sum(a != b for a, b in pairs)}
    return result | {"largest_difference": max(abs(a - b) for a, b in pairs)}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with eval/ and tinystories/")
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES, help="of the harness's own backend")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=512)
    options = parser.parse_args()
    size = {"layers": options.layers, "hidden_size": options.hidden_size, "heads": options.hidden_size // 64}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", options.data_root / _TEXT, size)
        export_checkpoint(model, folder / "exported")
        import_directory(folder / "exported", folder / "imported")
        contenders: dict[str, LM] = {
            f"hf batch {batch}": HFLM(
                pretrained=str(folder / "exported"), device="cpu", dtype="float32", batch_size=batch
            )
            for batch in options.batches
        }
        contenders["llmscale"] = Guest(str(folder / "imported"))
        tokenizer = load_tokenizer(folder / "tokenizer")
        result: dict[str, Any] = {"benchmark": "evaluate", **machine(), "threads": torch.get_num_threads(), **size}
        for task in options.tasks:
            requests = requests_of(task, options.data_root / TASKS[task], options.items, tokenizer)
            result[task] = compare(contenders, requests, options.repeats)
            print(task, result[task], file=sys.stderr, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
