"""The end of a run, on rank 0: baselines, samples, the loss curve, the summary."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_records, strict
from data_pipeline.base.terminal import for_stream, tell
from data_pipeline.finite.heldout import heldout_documents, training_documents
from llmscale.checkpoint.model import load_model
from llmscale.evaluate.baselines import Baselines, unigram_bits_per_byte, xz_bits_per_byte
from llmscale.generate import Generator, Settings, reading_of
from llmscale.report.goodput import read_goodput
from llmscale.train.gain import compared, gain_as_json, show_gain
from llmscale.train.setup import Setup

SAMPLE_TOKENS = 64
"""Tokens of each generated sample."""


def _is_training(row: dict[str, Any]) -> bool:
    """Whether a row is of a step and has its numbers, as one that a tool has changed may not."""
    return "loss" in row and isinstance(row.get("tokens_per_second"), int | float)


def finish(setup: Setup) -> None:
    """Write summary.json and the loss curve, and show the result and what to do next."""
    config, run = setup.config, setup.run
    goodput = read_goodput(run.path)
    rows = [row for row in read_records(run.metrics) if _is_training(row)]
    summary: dict[str, Any] = {
        "steps": setup.state.step,
        "loss": rows[-1]["loss"] if rows else None,
        "evaluation": setup.state.evaluation,
        "parameters": setup.engine.parameters,
        "trained_parameters": setup.engine.trained_parameters,
        "samples_seen": setup.state.samples,
        "tokens": setup.state.tokens,
        "skipped_steps": setup.state.skipped_steps,
        "tokens_per_second": float(np.median([row["tokens_per_second"] for row in rows])) if rows else None,
        "seconds": setup.state.seconds,
        "goodput": goodput.as_json() if goodput is not None else None,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "device": str(setup.world.device.type),
            "ranks": setup.world.size,
            "threads": torch.get_num_threads(),
        },
    }
    if config.evaluation.baselines and "bits_per_byte" in (setup.state.evaluation or {}):
        summary["baselines"] = _baselines(setup).as_json()
    summary["samples"] = _samples(setup)
    gain = compared(setup)
    summary |= gain_as_json(gain, setup.state.forgotten)
    write_json(run.summary_file, strict(summary))
    picture = _draw(setup)
    show_gain(gain, setup.state.forgotten)
    _show(setup, summary, picture)


def _baselines(setup: Setup) -> Baselines:
    tell("measuring the baselines (xz, unigram) on the same documents ...")
    data, tokenizer = setup.config.data, setup.tokenizer
    assert setup.evaluation_set is not None
    xz = xz_bits_per_byte(heldout_documents(data, tokenizer))
    unigram = unigram_bits_per_byte(
        _tokens(setup, training_documents(data, tokenizer)),
        _tokens(setup, heldout_documents(data, tokenizer)),
        tokenizer.vocab_size,
        setup.evaluation_set.bytes,
    )
    return Baselines(xz=xz, unigram=unigram)


def _tokens(setup: Setup, documents: Iterable[str], block: int = 64) -> Iterator[np.ndarray]:
    """Token ids of each document with the end-of-document token that the model predicts too."""
    end = np.array([setup.tokenizer.special["eos"]])
    held: list[str] = []
    for document in documents:
        held.append(document)
        if len(held) == block:
            yield from (np.concatenate([ids, end]) for ids in setup.tokenizer.encode_batch(held))
            held = []
    yield from (np.concatenate([ids, end]) for ids in setup.tokenizer.encode_batch(held))


def _samples(setup: Setup) -> list[dict[str, str]]:
    """Continuations by the model that was written, read back from its checkpoint: proof that it can be used."""
    prompts = setup.config.logging.sample_prompts
    if not prompts:
        return []
    trained = load_model(setup.run.path, tokenizer=setup.tokenizer)
    generator = Generator(trained.model, trained.tokenizer, reading_of(setup.config.objective))
    settings = Settings(SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=setup.config.run.seed)
    samples = []
    for prompt in prompts:
        [completion] = generator.generate([prompt], settings.within(generator.room(prompt)))
        samples.append({"prompt": prompt, "text": completion.text})
    return samples


def _draw(setup: Setup) -> str | None:
    from llmscale.report import loss_curve

    path = setup.run.report / "loss.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        loss_curve(setup.run.path, path)
    except UserError as error:
        tell(f"no picture was drawn: {error}")
        return None
    return str(path)


_COLUMNS = {"bits_per_byte": "bits per byte", "loss": "loss (nats/token)"}
"""What the table calls figures whose name is not enough."""


def _show(setup: Setup, summary: dict[str, Any], picture: str | None) -> None:
    """The result on stdout."""
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 100)
    run = setup.run.path
    figures = summary["evaluation"]
    if figures is not None:
        size = f", {figures['bytes']:,} bytes" if "bytes" in figures else ""
        table = Table(title=Text(f"{run}: {figures['documents']} held-out documents{size}"))
        columns = {
            (_COLUMNS if "bits_per_byte" in figures else {}).get(name, name.replace("_", " ")): f"{value:.1f}"
            if name == "perplexity"
            else f"{value:.3f}"
            for name, value in sorted(figures.items(), key=lambda item: item[0] != "bits_per_byte")
            if name not in ("documents", "bytes", "tokens", "samples")
        }
        for column in ("", *columns):
            table.add_column(column, justify="left" if not column else "right")
        table.add_row(f"this model, step {summary['steps']}", *columns.values())
        names = {"xz": "xz -9e", "unigram": "unigram of the training tokens"}
        for name, baseline in summary.get("baselines", {}).items():
            table.add_row(names[name], f"{baseline['bits_per_byte']:.3f}", "", "")
        console.print(table)
    for sample in summary["samples"]:
        console.rule("sample")
        console.print(for_stream(sample["prompt"], sys.stdout), style="bold", end="", markup=False)
        console.print(for_stream(sample["text"], sys.stdout), markup=False)
        console.rule()
    show_next(str(run), picture, generates=not setup.config.model.cannot_generate)


def show_next(run: str, picture: str | None, *, generates: bool) -> None:
    """Print what to do with a finished run in the directory `run`, as lines that can be pasted into a shell."""
    console = Console(file=sys.stdout, highlight=False)
    console.print("Next:", style="bold")
    for line in _next_commands(shlex.quote(run), picture, generates):
        console.print(f"  {line}", markup=False, soft_wrap=True)  # not folded at the width of the screen


def _next_commands(run: str, picture: str | None, generates: bool) -> Iterator[str]:
    """What to do with a finished run, whose directory is given as a word of a shell."""
    if picture:
        yield f"look at {shlex.quote(picture)}, or make a page of it: llmscale report {run}"
    if generates:
        yield f"generate:  llmscale generate {run} --prompt 'def main('"
    yield f"evaluate:  llmscale eval {run} --data FILE"
    yield f"checkpoint: llmscale checkpoint show {run}"
