"""What a run puts into its checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.loader import TrainLoader
from llmscale.checkpoint.writer import CheckpointWriter
from llmscale.config import RunConfig, identity
from llmscale.distributed.agreement import on_rank_zero
from llmscale.engine.engine import Engine
from llmscale.train.inherited import drawn_tensors
from llmscale.train.recoveries import as_progress
from llmscale.train.resume import Resume
from llmscale.train.run_directory import RunDirectory
from llmscale.train.state import TrainState


@dataclass(frozen=True)
class Saver:
    """Saves what a run needs to go on: weights, optimizer, the place in the data, and the tokenizer."""

    config: RunConfig
    run: RunDirectory
    engine: Engine
    loader: TrainLoader
    writer: CheckpointWriter
    resume: Resume

    def save(self, state: TrainState) -> None:
        """Write a checkpoint of this step in the background; training goes on once the state is copied."""
        extra = {
            "samples": state.samples,
            "progress": {"tokens": state.tokens, "skipped_steps": state.skipped_steps, "seconds": state.seconds}
            | _best(state)
            | as_progress(state.skips, state.recent),
            "optimizer": self.engine.counters,
            "schedule": {"lr": self.engine.learning_rate(state.step), "step": state.step},
            "config": self.config.model_dump(mode="json"),
            "identity": identity(self.config),
            # A step trains every head: the objective has the model's.
            "drawn": drawn_tensors(self.config, self.resume) if state.step == state.skipped_steps else [],
        }
        if self.engine.features is not None:
            self.engine.features.flush()
        tokenizer = {path.name: path for path in sorted(self.run.tokenizer.iterdir())}
        self.writer.save(state.step, self.engine.state(), extra, self.loader.cursor(), tokenizer)

    def correct(self, state: TrainState) -> None:
        """Have the manifest of this step, which is saved, say what the best step is by now; collective."""
        on_rank_zero(lambda: self.writer.correct(state.step, _best(state)))

    def wait(self) -> None:
        """Until the last checkpoint is on the disk. Raises CheckpointError where it cannot be written."""
        self.writer.wait()


def _best(state: TrainState) -> dict[str, Any]:
    return {"best": asdict(state.best)} if state.best else {}
