"""Where the figures of a run go: its records, the screen, and experiment trackers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_pipeline.base.records import RecordWriter
from llmscale.train.progress import Progress
from llmscale.train.state import StepResult
from llmscale.train.trackers import Tracker

COUNTS = ("sources", "dropped")
"""What a row of metrics.jsonl may hold by label: samples of each source, and documents that this rank's reading dropped
or repaired, by reason."""
FORGETTING = "forgetting"
"""What a row holds under this: bits per byte of the sources of `finetune.forgetting`."""
RANKS = "ranks"
"""What a row may hold by rank: of each figure the median, the most, and which rank on which node has that."""


@dataclass
class Outputs:
    """All of them; on ranks other than 0 they write nothing."""

    progress: Progress
    records: RecordWriter | None = None
    """metrics.jsonl."""
    trackers: list[Tracker] = field(default_factory=list)

    def step(self, result: StepResult) -> None:
        """Show a step."""
        self.progress.step(result)

    def metrics(self, row: dict[str, Any]) -> None:
        """Write the figures of the steps since the last row."""
        if self.records is not None:
            self.records.write(row)
        for tracker in self.trackers:
            numbers = {key: value for key, value in row.items() if key not in ("step", RANKS, *COUNTS)}
            counts = {f"{name}/{label}": count for name in COUNTS for label, count in row.get(name, {}).items()}
            extremes = {
                f"ranks/{name}/{label}": value
                for name, figures in row.get(RANKS, {}).items()
                for label, value in figures.items()
            }
            tracker.log({**numbers, **counts, **extremes}, step=row["step"])

    def evaluation(self, step: int, figures: dict[str, Any]) -> None:
        """Write and show an evaluation."""
        if self.records is not None:
            self.records.write({"step": step, "evaluation": figures})
        for tracker in self.trackers:
            tracker.log({f"evaluation/{key}": value for key, value in figures.items()}, step=step)
        self.progress.evaluated(step, figures)

    def tasks(self, step: int, figures: dict[str, dict[str, float]]) -> None:
        """Write and show figures of tasks: value, low, high and items by `task/metric`."""
        if self.records is not None:
            self.records.write({"step": step, "tasks": figures})
        for tracker in self.trackers:
            tracker.log({f"tasks/{name}": figure["value"] for name, figure in figures.items()}, step=step)
        for name, figure in figures.items():
            self.progress.say(
                f"step {step}: {name} {figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f},"
                f" {figure['items']:,} items)"
            )

    def silent_error(self, step: int, faults: list[dict[str, Any]]) -> None:
        """Write which ranks computed wrongly before a step: rank, node and where."""
        if self.records is not None:
            self.records.write({"step": step, "silent_error": faults})

    def forgetting(self, step: int, figures: dict[str, float]) -> None:
        """Write and show bits per byte by source."""
        if self.records is not None:
            self.records.write({"step": step, FORGETTING: figures})
        for tracker in self.trackers:
            tracker.log({f"{FORGETTING}/{name}": value for name, value in figures.items()}, step=step)
        for name, value in figures.items():
            self.progress.say(f"step {step}: {value:.4f} bits per byte of {name}")

    def finish(self) -> None:
        """Tell the trackers that no more comes."""
        for tracker in self.trackers:
            tracker.finish()
