"""What a run directory says about its run, read without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.base.durable import parse_json, read_file
from data_pipeline.base.errors import UserError
from data_pipeline.base.records import read_counted_records
from llmscale.model.heads import all_heads
from llmscale.report.goodput import Goodput, read_goodput

UNITS = {
    "router_loss": "mean over sequences, weighted by their targets",
    **{f"{head.name}_loss": head.unit for head in all_heads() if head.title},
}
"""What terms of the loss besides that of the tokens are given in, by their names in metrics.jsonl."""
TERMS = {"router_loss": "Router loss", **{f"{head.name}_loss": head.title for head in all_heads() if head.title}}
"""Terms of the loss besides that of the tokens, by their names in metrics.jsonl; few models have them."""
_METRICS = ("loss", *TERMS, "grad_norm", "lr", "tokens_per_second", "mfu", "peak_flops")
_EVALUATION = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")


@dataclass(frozen=True)
class Series:
    """One quantity of a run, a value for each logged step; NaN where the run recorded none or no finite number."""

    step: np.ndarray
    """(N,) float64: optimizer steps, ascending."""
    tokens: np.ndarray
    """(N,) float64: target tokens trained on until then; NaN where unknown."""
    value: np.ndarray
    """(N,) float64."""

    def finite(self) -> Series:
        """The points whose value is a finite number."""
        return self.where(np.isfinite(self.value))

    def where(self, mask: np.ndarray) -> Series:
        """The points where the (N,) bool `mask` holds."""
        return Series(self.step[mask], self.tokens[mask], self.value[mask])


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it. Every part but the metrics may be missing: the run may still be going."""

    name: str
    metrics: dict[str, Series]
    """By name: loss (nats per target token), the other terms of the loss, grad_norm, lr, tokens_per_second, mfu and the
    peak_flops that it is a share of."""
    evaluation: dict[str, Series]
    """By name: loss (nats per target token), perplexity, bits_per_byte, and of how many held-out tokens and bytes."""
    summary: dict[str, Any]
    """summary.json, or empty."""
    outcome: dict[str, Any]
    """outcome.json, or empty."""
    manifest: dict[str, Any]
    """The newest checkpoint's manifest.json, or empty."""
    config: str
    """config.yaml as text, or empty."""
    goodput: Goodput | None = None
    """What its wall time went into; None where it has kept no account."""
    skipped: int = 0
    """Damaged records, and values of the wrong kind, that are left out."""

    @property
    def terms(self) -> list[str]:
        """Terms of the loss that the run has, besides that of the tokens."""
        return [name for name in TERMS if len(self.metrics[name].finite().step)]

    @property
    def held_out(self) -> dict[str, float]:
        """The final evaluation, else the last one during training; empty when there was none."""
        if self.summary.get("evaluation"):
            return dict(self.summary["evaluation"])
        last = {name: series.finite().value[-1:] for name, series in self.evaluation.items()}
        return {name: float(value[0]) for name, value in last.items() if len(value)}


def read_runs(directories: list[Path]) -> list[RunRecord]:
    """Read run directories, named by their last folder, or by their whole paths where last folders agree.

    Raises:
        UserError: as `read_run`.
    """
    names = [directory.resolve().name for directory in directories]
    if len(set(names)) < len(names):
        names = [str(directory) for directory in directories]
    return [read_run(directory, name) for directory, name in zip(directories, names, strict=True)]


def read_run(directory: Path, name: str) -> RunRecord:
    """Read a run directory, which a run may still be writing; pictures call it `name`.

    Raises:
        UserError: no such directory, or its metrics.jsonl is missing or has no row yet.
    """
    path = directory / "metrics.jsonl"
    if not directory.is_dir():
        raise UserError(f"there is no run directory {directory}; give the directory that run.directory named")
    if not path.is_file():
        raise UserError(f"{path} is missing, so {directory} is not a run that has started; give a run directory")
    rows, damaged = read_counted_records(path)
    if not rows:
        raise UserError(f"{path} has no complete row yet; wait for the run's first logged step (logging.interval)")
    wrong = sum(not _is_sound(row) for row in rows)
    training = [row for row in rows if "evaluation" not in row]
    tokens = _column(training, "tokens")
    step = _column(training, "step")
    metrics = {name: Series(step, tokens, _column(training, name)) for name in _METRICS}
    norm = metrics["grad_norm"].value
    norm[norm < 0] = np.nan  # the trainer records -1 where the gradient was not finite
    summary, unsound = _sound_summary(_read_json(directory / "summary.json"))
    return RunRecord(
        name=name,
        metrics=metrics,
        skipped=damaged + wrong + unsound,
        goodput=read_goodput(directory),
        evaluation=_evaluation([row for row in rows if "evaluation" in row], step, tokens),
        summary=summary,
        outcome=_read_json(directory / "outcome.json"),
        manifest=_newest_manifest(directory / "checkpoints"),
        config=_read_text(directory / "config.yaml"),
    )


def _evaluation(rows: list[dict[str, Any]], step: np.ndarray, tokens: np.ndarray) -> dict[str, Series]:
    at = _column(rows, "step")
    known = np.isfinite(tokens)
    # Steps without a training row of their own get their tokens from the rows around them.
    between = np.interp(at, step[known], tokens[known]) if known.any() else np.full(len(at), np.nan)
    values = [row["evaluation"] if isinstance(row["evaluation"], dict) else {} for row in rows]
    return {name: Series(at, between, _column(values, name)) for name in _EVALUATION}


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """(N,) float64; NaN where a row has no such number (JSON has no NaN, so writers may put null)."""
    return np.array([_number(row.get(name)) for row in rows], dtype=np.float64)


def _number(value: Any) -> float:
    """A number of JSON as float; NaN where it is none, or is beyond floats."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def _is_number(value: Any) -> bool:
    """Whether a value can be shown, or is one of which a writer says that it is not finite."""
    return value is None or (isinstance(value, float) and not math.isfinite(value)) or math.isfinite(_number(value))


def _is_sound(row: dict[str, Any]) -> bool:
    """Whether what the report shows of a row of metrics.jsonl is of the right kind."""
    if "evaluation" not in row:
        return all(_is_number(row.get(name)) for name in (*_METRICS, "tokens"))
    held = row["evaluation"]
    return held is None or (isinstance(held, dict) and all(_is_number(held.get(name)) for name in _EVALUATION))


def _sound_summary(found: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """summary.json without what is of the wrong kind, and how many values that are."""
    kept: dict[str, Any] = {key: found[key] for key in ("machine", "versions") if key in found}
    wrong = 0
    for key in ("steps", "parameters", "ranks", "seconds", "loss", "tokens_per_second"):
        if _is_number(found.get(key)):
            kept[key] = found.get(key)
        else:
            wrong += 1
    held = found.get("evaluation") or {}
    sound = {name: value for name, value in held.items() if _is_number(value)} if isinstance(held, dict) else {}
    kept["evaluation"] = {name: _number(value) for name, value in sound.items()}
    wrong += len(held) - len(sound) if isinstance(held, dict) else 1
    given = found.get("baselines") or {}
    bits = {name: _baseline(entry) for name, entry in given.items()} if isinstance(given, dict) else {}
    kept["baselines"] = {name: {"bits_per_byte": value} for name, value in bits.items() if value > 0}
    wrong += len(given) - len(kept["baselines"]) if isinstance(given, dict) else 1
    samples = found.get("samples") or []
    kept["samples"] = [row for row in samples if _is_sample(row)] if isinstance(samples, list) else []
    wrong += len(samples) - len(kept["samples"]) if isinstance(samples, list) else 1
    return kept, wrong


def _baseline(entry: Any) -> float:
    """Bits per byte of a baseline; -1 where it says none."""
    value = _number(entry.get("bits_per_byte")) if isinstance(entry, dict) else math.nan
    return value if math.isfinite(value) else -1.0


def _is_sample(row: Any) -> bool:
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("prompt", "text"))


def _newest_manifest(checkpoints: Path) -> dict[str, Any]:
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        manifest = _read_json(folder / "manifest.json")
        # A copy under another number is none of the run's.
        if manifest and str(manifest.get("step", "")).zfill(8) in (folder.name.removeprefix("step-"), "0" * 8):
            return manifest
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or cut short (the pictures do without it)."""
    try:
        value = parse_json(_read_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return read_file(path).decode(errors="replace")
    except OSError:
        return ""
