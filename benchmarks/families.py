"""A table of families: small twins of GPT-2, Llama, BERT, ModernBERT and T5, trained on the same tokens of the same
text and asked which of two sentences is the right one.

    python -m benchmarks.families --data-root DIR [--language zh] [--steps N] [--limit N]

Two twins at a time, each on a core. Prints a Markdown table and one JSON line. Each figure has its interval, and each
model is compared with the first on the same pairs. Decoders score a sentence by its likelihood, encoders and
encoder-decoders by hiding each of its tokens or words in turn, so that this compares what can be done with a family,
not what its likelihoods are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import machine
from llmscale.evaluate.compare.models import load_model
from llmscale.evaluate.compare.pairs import Comparison, compare
from llmscale.evaluate.compare.scored import ScoredArtefact

# What a twin has of its family, and what it is trained on; sizes are the same but for T5's two stacks, which have as
# many layers together.
TWINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GPT-2": ({"family": "gpt2"}, {"name": "causal"}),
    "Llama": ({"family": "llama"}, {"name": "causal"}),
    "BERT": ({"family": "bert", "next_sentence": False}, {"name": "masked", "next_sentence": False, "rate": 0.3}),
    "ModernBERT": ({"family": "modernbert"}, {"name": "masked", "next_sentence": False, "rate": 0.3}),
    "T5": ({"family": "t5"}, {"name": "denoising"}),
}
LENGTH = 128
BATCH = 16


@dataclass(frozen=True)
class Language:
    """What twins are trained on and asked."""

    text: str
    """Below the data root; a document a line."""
    task: str
    """The minimal pairs, in a folder of its name."""
    vocabulary: int
    coverage: float
    """Share of the text whose characters have tokens of their own; the others are read by their bytes."""


LANGUAGES = {
    "en": Language("tinystories/tinystories_sample_2M.txt", "blimp", 2000, 1.0),
    "zh": Language("zh_novels/*.txt", "zhoblimp", 4000, 0.98),
}


def config_of(
    name: str, folder: Path, text: Path, steps: int, layers: int, hidden: int, vocabulary: int, coverage: float = 1.0
) -> dict[str, Any]:
    """The config of a twin, whose run is in a folder of its name."""
    model, objective = TWINS[name]
    sizes = {"layers": layers, "hidden_size": hidden, "heads": max(2, hidden // 32), "max_positions": LENGTH}
    if name == "T5":
        sizes |= {"layers": layers // 2, "encoder_layers": layers - layers // 2}
    tokens = {"model": "bpe", "vocab_size": vocabulary, "character_coverage": coverage}
    return {
        "run": {"directory": str(folder / name), "seed": 1, "device": "cpu"},
        "data": {
            "sources": [{"kind": "text", "paths": [str(text)], "document": "line"}],
            "tokenizer": {"kind": "sentencepiece", "train": tokens},
            "sequence_length": LENGTH,
            "lanes": 8,
            "span_bytes": 20000,
            "shuffle_buffer": 512,
            "workers": 0,
        },
        "model": {**sizes, "dropout": 0.0, **model},
        "objective": objective,
        "optimizer": {"lr": 2.0e-3, "betas": [0.9, 0.98], "weight_decay": 0.01, "clip": 1.0},
        "schedule": {"name": "wsd", "warmup_steps": steps // 10, "decay_steps": steps // 3, "final_fraction": 0.05},
        "train": {"steps": steps, "global_batch": BATCH, "micro_batch": BATCH},
        "checkpoint": {"interval": 0},
        "logging": {"interval": max(1, steps // 10)},
    }


def train(config: dict[str, Any]) -> float:
    """Train a twin; returns the seconds it took."""
    path = Path(f"{config['run']['directory']}.yaml")
    path.write_text(yaml.safe_dump(config))
    started = time.monotonic()
    _llmscale("train", str(path))
    return time.monotonic() - started


def evaluate(name: str, folder: Path, task: str, pairs: Path, limit: int) -> None:
    """Score the pairs with a twin."""
    _llmscale("eval", str(folder / name), "--tasks", task, "--data", f"{task}={pairs}", "--limit", str(limit))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row for each twin: its figure, and its difference from the first twin's."""
    names = list(TWINS)
    models = [load_model(str(folder / name)) for name in names]
    comparisons = compare(models)
    first = {"model": names[0], **_figure(comparisons[0].figures[0]), **_scorer(models[0])}
    return [
        first,
        *(
            {"model": name, **_figure(found.figures[1]), **_scorer(model), **_difference(found)}
            for name, model, found in zip(names[1:], models[1:], comparisons, strict=True)
        ),
    ]


def _figure(interval: Any) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "pairs": interval.n}


def _scorer(model: Any) -> dict[str, Any]:
    ((scored,),) = model.evaluations.values()
    assert isinstance(scored, ScoredArtefact)
    return {"scorer": scored.conditions["scorer"]}


def _difference(found: Comparison) -> dict[str, Any]:
    difference = {"value": found.difference.value, "low": found.difference.low, "high": found.difference.high}
    return {"difference": difference, "verdict": found.verdict.sentence}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        f"| model | scorer | right pairs | 95 % interval | beside {rows[0]['model']} | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        beside = "difference" in row and "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**row["difference"])
        cells = [row["model"], f"`{row['scorer']}`", f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        lines.append(f"| {' | '.join([*cells, beside or '', row.get('verdict', '')])} |")
    return "\n".join(lines)


def _llmscale(*arguments: str) -> None:
    command = [sys.executable, "-m", "llmscale", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=environment)
    if done.returncode:
        sys.exit(f"llmscale {' '.join(arguments)} failed:\n{done.stdout.decode(errors='replace')}")


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, help="folder with tinystories/ and blimp/, or zh_novels/ and zhoblimp/"
    )
    parser.add_argument("--language", choices=list(LANGUAGES), default="en")
    parser.add_argument("--text", type=Path, help="to train on, a document a line, in place of the language's")
    parser.add_argument("--pairs", type=Path, help="folder of minimal pairs, in place of the language's")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--limit", type=int, default=600, help="most pairs")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, help="as suits the language when not given")
    parser.add_argument("--jobs", type=int, default=2, help="twins at a time, each on a core")
    options = parser.parse_args()
    if options.data_root is None and None in (options.text, options.pairs):
        parser.error("give --data-root, or --text and --pairs")
    language = LANGUAGES[options.language]
    text = options.text or options.data_root / language.text
    pairs = options.pairs or options.data_root / language.task
    sizes = (options.steps, options.layers, options.hidden_size, options.vocab_size or language.vocabulary)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        folder = Path(name)

        def make(twin: str) -> float:
            seconds = train(config_of(twin, folder, text, *sizes, language.coverage))
            evaluate(twin, folder, language.task, pairs, options.limit)
            print(f"{twin}: trained in {seconds:.1f} s", file=sys.stderr, flush=True)
            return round(seconds, 1)

        seconds = dict(zip(TWINS, pool.map(make, TWINS), strict=True))
        rows = rows_of(folder)
    print(table(rows))
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "benchmark": "families",
        **machine(),
        "language": options.language,
        "tokens": options.steps * BATCH * LENGTH,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1),
    }
    print(json.dumps({**result, "train_seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
