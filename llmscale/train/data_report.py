"""What was wrong with the training data: bad records go to a quarantine file, and many of them cause a warning."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.base.records import RecordWriter
from data_pipeline.sources.readers.bad_records import DAMAGED, loss_text
from llmscale.distributed.process_group import World
from llmscale.train.callbacks import Callback, StepResult

if TYPE_CHECKING:
    from llmscale.train.trainer import Trainer


class DataReporter(Callback):
    """Writes each bad record that this rank meets to `quarantine/rank-00000.jsonl`, once."""

    def __init__(self, folder: Path, warning: float, interval: int, world: World) -> None:
        """`warning`: fraction of bad records above which to warn; `interval`: steps between looks."""
        self._folder = folder
        self._warning = warning
        self._interval = interval
        self._world = world
        self._seen: set[tuple[str, int]] = set()
        self._listed = 0
        self._warned = False

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step % self._interval == 0:
            self._look(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        found = trainer.loader.take_bad()
        if not found or not trainer.grid.leads:  # other ranks read the same
            return
        self._listed += len(found)
        fresh = [record for record in found if (record.path, record.position) not in self._seen]
        self._seen |= {(record.path, record.position) for record in fresh}
        self._folder.mkdir(exist_ok=True)
        with RecordWriter(self._folder / f"rank-{self._world.rank:05d}.jsonl", trainer.attempt) as writer:
            for record in fresh:
                writer.write({"step": trainer.step, **record._asdict()})
        for record in fresh:
            if record.reason == DAMAGED:
                self._warn(f"warning: {loss_text(record.path, record.detail)}")
        count, records = trainer.loader.bad_count, trainer.loader.records
        rate = count / max(1, records)
        if rate > self._warning and not self._warned:
            self._warned = True
            self._warn(
                f"warning: rank {self._world.rank} found {count} bad records among {records}"
                f" ({rate:.1%}; data.bad_record_warning is {self._warning:.1%}), the first: {found[0].place}"
                f" ({found[0].reason}); {'all' if count == self._listed else self._listed} are listed in {self._folder}"
            )

    def _warn(self, text: str) -> None:
        logging.getLogger("llmscale").warning(text)
        print(text, file=sys.stderr, flush=True)
