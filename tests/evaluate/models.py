"""Small models of several families as checkpoints, and small tasks with their data."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.whole import write_whole
from llmscale.config import parse_config
from llmscale.parallel.init import build

CONTEXT = 192
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({"family": "gpt2"}, {"name": "causal"}),
    "llama": ({"family": "llama", "kv_heads": 2}, {"name": "causal"}),
    "prefix": ({"family": "gpt2"}, {"name": "prefix"}),
    "alibi": ({"positions": "alibi"}, {"name": "causal"}),
    "gpt_neo": ({"family": "gpt_neo", "window": 8}, {"name": "causal"}),
    "experts": (
        {"family": "wu_dao", "experts": {"count": 8, "every": 2, "per_token": 2, "capacity_factor": None}},
        {"name": "causal"},
    ),
    "bert": ({"family": "bert", "next_sentence": False}, {"name": "masked"}),
    "t5": ({"family": "t5", "encoder_layers": 2}, {"name": "denoising"}),
}
"""Model and objective section of each."""
_WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "two", "old", "dogs", "ran", "far", "away", "from", "houses"]


def write_checkpoint(folder: Path, name: str, init_std: float = 0.3) -> Path:
    """A checkpoint with drawn weights, as a run would leave it. With the default deviation its probabilities differ far
    more than those of trained models."""
    model, objective = FAMILIES[name]
    sizes = {"layers": 2, "hidden_size": 64, "heads": 4, "max_positions": CONTEXT, "init_std": init_std}
    config = parse_config(
        {
            "run": {"directory": "r"},
            "data": {"sources": [{"paths": ["a"]}], "tokenizer": {"kind": "bytes"}, "sequence_length": 64},
            "model": {**sizes, **model},
            "objective": objective,
        }
    )
    kept = folder.with_name(f"{folder.name}-tokenizer")
    tokenizer = prepare_tokenizer(config.data, kept, roles=config.objective.roles(64))
    files = {file.name: file.read_bytes() for file in kept.iterdir()}
    built = build(config.model, config.model.vocabulary(tokenizer.vocab_size), seed=3)
    folder.mkdir(parents=True)
    tensors = ((key, _spread(key, value.detach(), init_std)) for key, value in built.named_parameters())
    write_whole(folder, tensors, RunState(samples=0, config=config.model_dump(mode="json")), files)
    return folder


def _spread(name: str, tensor: torch.Tensor, init_std: float) -> torch.Tensor:
    # T5's initial scores of attention are near zero, and so is all that depends on masks.
    return tensor * 10 * init_std if name.endswith(("query.weight", "key.weight")) else tensor


def write_tasks(folder: Path, items: int = 40) -> dict[str, Path]:
    """Task files of kinds choice, likelihood and minimal_pair with answers of very unequal lengths, some of them equal
    to each other but for their last token."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(5)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(least, most)))

    def choices() -> list[str]:
        stem = text(0, 2)
        return sorted({f"{stem} {text(1, 3)}".strip() for _ in range(6)})

    rows = {
        "choice": [{"question": text(0, 12), "choices": choices(), "gold": 0} for _ in range(items)],
        "likelihood": [{"text": text(3, 20), "last": text(1, 2)} for _ in range(items)],
        "pairs": [{"good": text(3, 7), "bad": text(8, 9)} for _ in range(items)],
    }
    tasks: dict[str, dict[str, Any]] = {
        "choice": {
            "kind": "choice",
            "context": "Question: {{ question }}\nAnswer:",
            "answers": "{{ choices }}",
            "gold": "{{ gold }}",
            "neutral": "Answer:",
        },
        "likelihood": {"kind": "likelihood", "context": "{{ text }}", "answer": "{{ last }}"},
        "pairs": {"kind": "minimal_pair", "good": "{{ good }}", "bad": "{{ bad }}"},
    }
    paths = {}
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump({**tasks[name], "data": {"files": [f"{name}.jsonl"]}}))
    return paths
