"""A T5 on translations (Multi30k) beside a plain loop of transformers: the same initial weights and rows, no dropout.

    python -m benchmarks.finetune_parity --data-root CORPORA [--layers 4 --hidden-size 256 --vocabulary 8000 --lr 1e-3]

The rows of each step are those that the run's ledger names, read from the files again and tokenised by transformers
with the exported tokenizer. One JSON line: the largest relative difference of a loss, and the share of the tokens of
held-out translations in whose place the two trained models have the same likeliest token. Beside it stands how far
transformers is from itself when the rows of each batch come in reverse, which is rounding alone: from weights that are
nearly drawn, a high learning rate multiplies it from step to step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import machine
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.interface import Run

DECAY, CLIP, BETAS = 0.1, 1.0, (0.9, 0.95)
LENGTH = 64
"""Tokens that are kept of a source and of a target."""
Pairs = list[tuple[str, str]]


def settings(sizes: dict[str, Any], vocabulary: int, batch: int, micro_batch: int, rate: float) -> dict[str, Any]:
    """A run on source.txt and target.txt, whose lines are translations of each other."""
    return {
        "run": {"directory": "tuned", "device": "cpu"},
        "data": {
            "sources": [{"kind": "text", "document": "line", "paths": ["source.txt"], "target_paths": ["target.txt"]}],
            "order": "finite",
            "tokenizer": {"train": {"model": "unigram", "vocab_size": vocabulary}},
            "sequence_length": LENGTH,
            "workers": 0,
        },
        "model": {"family": "t5", "max_positions": LENGTH, **sizes},
        "objective": {"name": "seq2seq", "target_length": LENGTH},
        "optimizer": {"lr": rate, "weight_decay": DECAY, "clip": CLIP, "betas": list(BETAS)},
        "schedule": {"name": "constant"},
        "train": {"global_batch": batch, "micro_batch": micro_batch},
        "logging": {"interval": 1},
    }


def compare(
    folder: Path, config: dict[str, Any], pairs: Pairs, heldout: Pairs, steps: int, train: Callable[..., None]
) -> dict[str, Any]:
    """Train both from the weights of a run of two steps.

    Args:
        folder: empty; runs and files go there.
        pairs: sources and targets.
        train: runs `llmscale train` in `folder` with the arguments.
    """
    for name, side in zip(("source", "target"), zip(*pairs, strict=True), strict=True):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config))
    train("config.json", "run.directory=base", "train.steps=2")
    export_checkpoint(folder / "base", folder / "exported")
    train("config.json", "train.init_from=base", f"train.steps={steps}")
    run = Run(folder / "tuned" / "config.yaml")
    ours = [row["loss"] for row in run.metrics if "loss" in row]
    model, tokenizer = _loaded(folder / "exported")
    rows = list(rows_of_steps(run, pairs, steps))
    rate = config["optimizer"]["lr"]
    theirs = plain_loop(model, (batch_of(tokenizer, each) for each in rows), rate)
    again = plain_loop(_loaded(folder / "exported")[0], (batch_of(tokenizer, each[::-1]) for each in rows), rate)
    export_checkpoint(folder / "tuned", folder / "tuned-exported")
    answers = [next_tokens(each, tokenizer, heldout) for each in (model, _loaded(folder / "tuned-exported")[0])]
    return {
        "steps": len(ours),
        "first_loss": ours[0],
        "last_loss": ours[-1],
        "largest_relative_difference": largest_difference(ours, theirs),
        "of_transformers_with_rows_reversed": largest_difference(again, theirs),
        "tokens": len(answers[0]),
        "agreement": float((answers[0] == answers[1]).float().mean()),
    }


def largest_difference(losses: list[float], others: list[float]) -> float:
    """The largest relative one."""
    return max(abs(a - b) / b for a, b in zip(losses, others, strict=True))


def _loaded(folder: Path) -> tuple[Any, Any]:
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dropout_rate=0.0)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def rows_of_steps(run: Run, pairs: Pairs, steps: int) -> Iterator[Pairs]:
    """The pairs of each step, by where its documents begin in the file of sources."""
    offsets, offset = {}, 0
    for number, (source, _) in enumerate(pairs):
        offsets[offset] = number
        offset += len(source.encode()) + 1
    for step in range(1, steps + 1):
        yield [pairs[offsets[piece.origin.position]] for piece in run.seen(step)]


def batch_of(tokenizer: Any, pairs: Pairs) -> dict[str, torch.Tensor]:
    """Padded to the longest row; nothing is learned of what fills up."""
    settings = {"truncation": True, "max_length": LENGTH, "padding": True, "return_tensors": "pt"}
    inputs, targets = (tokenizer(list(side), **settings) for side in zip(*pairs, strict=True))
    labels = targets["input_ids"].masked_fill(targets["attention_mask"] == 0, -100)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}


def plain_loop(
    model: nn.Module,
    batches: Iterable[dict[str, torch.Tensor]],
    rate: float,
    clip: float = CLIP,
    frozen: tuple[str, ...] = (),
) -> list[float]:
    """Losses of forward, backward, clip and AdamW; `frozen`: how the names begin of what is not trained."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in trained if each.dim() > 1], "weight_decay": DECAY},
        {"params": [each for each in trained if each.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, betas=BETAS, eps=1e-8)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def next_tokens(model: nn.Module, tokenizer: Any, pairs: Pairs) -> torch.Tensor:
    """(tokens,): the likeliest token at each place of the targets, after the true ones before it."""
    model.eval()
    found = []
    for first in range(0, len(pairs), 32):
        batch = batch_of(tokenizer, pairs[first : first + 32])
        found.append(model(**batch).logits.argmax(-1)[batch["labels"] != -100])
    return torch.cat(found)


def _pairs(corpora: Path, split: str) -> Pairs:
    sides = ((corpora / f"multi30k/{split}.{end}").read_text(encoding="utf-8").splitlines() for end in ("de", "en"))
    return list(zip(*sides, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that has multi30k/")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=3, help="of the encoder, and of the decoder")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=1e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    hidden = arguments.hidden_size
    sizes = {"layers": arguments.layers, "hidden_size": hidden, "heads": 4, "ffn_size": 4 * hidden}
    config = settings(sizes, arguments.vocabulary, batch=32, micro_batch=16, rate=arguments.lr)
    corpora = arguments.data_root.absolute()
    with tempfile.TemporaryDirectory(prefix="llmscale-parity-") as name:

        def train(*given: str) -> None:
            command = [sys.executable, "-m", "llmscale", "train", *given, f"run.threads={arguments.threads}"]
            subprocess.run(command, cwd=name, check=True, stdout=sys.stderr)

        os.chdir(name)
        pairs, heldout = (_pairs(corpora, split) for split in ("train", "val"))
        found = compare(Path(name), config, pairs, heldout, arguments.steps, train)
    print(json.dumps({"benchmark": "finetune_parity", "machine": machine(), "figures": found}))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
