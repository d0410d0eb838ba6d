"""A table of families: small twins of GPT-2, Llama, BERT, ModernBERT and T5, trained on the same tokens of the same
text and asked which of two sentences is the right one.

    python -m benchmarks.families --data-root DIR [--steps N] [--limit N]

Prints a Markdown table and one JSON line. Each figure has its interval, and each model is compared with the first on
the same pairs. Decoders score a sentence by its likelihood, encoders and encoder-decoders by hiding each of its tokens
or words in turn, so that this compares what can be done with a family, not what its likelihoods are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
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
    "BERT": ({"family": "bert", "next_sentence": False}, {"name": "masked", "next_sentence": False}),
    "ModernBERT": ({"family": "modernbert"}, {"name": "masked", "next_sentence": False}),
    "T5": ({"family": "t5"}, {"name": "denoising"}),
}
LENGTH = 128
BATCH = 16


def config_of(
    name: str, folder: Path, text: Path, steps: int, layers: int, hidden: int, vocabulary: int
) -> dict[str, Any]:
    """The config of a twin, whose run is in a folder of its name."""
    model, objective = TWINS[name]
    sizes = {"layers": layers, "hidden_size": hidden, "heads": max(2, hidden // 32), "max_positions": LENGTH}
    if name == "T5":
        sizes |= {"layers": layers // 2, "encoder_layers": layers - layers // 2}
    return {
        "run": {"directory": str(folder / name), "seed": 1, "device": "cpu"},
        "data": {
            "sources": [{"kind": "text", "paths": [str(text)], "document": "line"}],
            "tokenizer": {"kind": "sentencepiece", "train": {"model": "bpe", "vocab_size": vocabulary}},
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


def evaluate(name: str, folder: Path, pairs: Path, limit: int) -> None:
    """Score the pairs with a twin."""
    _llmscale("eval", str(folder / name), "--tasks", "blimp", "--data", f"blimp={pairs}", "--limit", str(limit))


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
    (scored,) = model.evaluations["blimp"]
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
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"llmscale {' '.join(arguments)} failed:\n{done.stdout.decode(errors='replace')}")


def main() -> None:
    """Print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, help="folder with tinystories/ and blimp/")
    parser.add_argument("--text", type=Path, help="to train on, a document a line, in place of tinystories")
    parser.add_argument("--pairs", type=Path, help="folder of BLiMP's files, in place of blimp/")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit", type=int, default=1200, help="most pairs")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=2000)
    options = parser.parse_args()
    if options.data_root is None and None in (options.text, options.pairs):
        parser.error("give --data-root, or --text and --pairs")
    text = options.text or options.data_root / "tinystories" / "tinystories_sample_2M.txt"
    pairs = options.pairs or options.data_root / "blimp"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {}
        for twin in TWINS:
            sizes = (options.steps, options.layers, options.hidden_size, options.vocab_size)
            seconds[twin] = round(train(config_of(twin, folder, text, *sizes)), 1)
            evaluate(twin, folder, pairs, options.limit)
            print(f"{twin}: trained in {seconds[twin]} s", file=sys.stderr, flush=True)
        rows = rows_of(folder)
    print(table(rows))
    tokens = options.steps * BATCH * LENGTH
    result = {"benchmark": "families", **machine(), "tokens": tokens, "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps({**result, "train_seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
