"""What was wrong with the training data: bad records go to a quarantine file, and many of them cause a warning."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.base.records import RecordWriter
from data_pipeline.base.terminal import warn
from data_pipeline.loader import TrainLoader
from data_pipeline.sources.readers.bad_records import DAMAGED, loss_text
from llmscale.train.callbacks.base import Callback
from llmscale.train.state import StepResult, TrainState


class DataReporter(Callback):
    """Writes each bad record that this rank meets to `quarantine/rank-00000.jsonl`, once."""

    def __init__(
        self, folder: Path, loader: TrainLoader, *, warning: float, interval: int, rank: int, attempt: int, leads: bool
    ) -> None:
        """
        Args:
            warning: fraction of bad records above which to warn.
            interval: steps between looks.
            leads: whether this rank reports; others read the same.
        """
        self._folder = folder
        self._loader = loader
        self._warning = warning
        self._interval = interval
        self._rank = rank
        self._attempt = attempt
        self._leads = leads
        self._seen: set[tuple[str, int]] = set()
        self._listed = 0
        self._warned = False

    def on_step(self, state: TrainState, result: StepResult) -> None:
        if result.step % self._interval == 0:
            self._look(state)

    def on_end(self, state: TrainState) -> None:
        self._look(state)

    def _look(self, state: TrainState) -> None:
        found = self._loader.take_bad()
        if not found or not self._leads:
            return
        self._listed += len(found)
        fresh = [record for record in found if (record.path, record.position) not in self._seen]
        self._seen |= {(record.path, record.position) for record in fresh}
        self._folder.mkdir(exist_ok=True)
        with RecordWriter(self._folder / f"rank-{self._rank:05d}.jsonl", self._attempt) as writer:
            for record in fresh:
                writer.write({"step": state.step, **record._asdict()})
        for record in fresh:
            if record.reason == DAMAGED:
                warn(f"{loss_text(record.path, record.detail)}")
        count, records = self._loader.bad_count, self._loader.records
        rate = count / max(1, records)
        if rate > self._warning and not self._warned:
            self._warned = True
            warn(
                f"rank {self._rank} found {count} bad records among {records}"
                f" ({rate:.1%}; data.bad_record_warning is {self._warning:.1%}), the first: {found[0].place}"
                f" ({found[0].reason}); {'all' if count == self._listed else self._listed} are listed in {self._folder}"
            )
