"""What of a config an engine works by."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.objectives import ObjectiveSettings
from llmscale.config import RunConfig
from llmscale.config.finetune import FinetuneConfig
from llmscale.config.model import ModelConfig
from llmscale.config.system import EngineConfig, ParallelConfig
from llmscale.config.training import OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True)
class EngineSettings:
    """Sections of a config, with the two settings of others that an engine needs."""

    model: ModelConfig
    objective: ObjectiveSettings
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    parallel: ParallelConfig
    engine: EngineConfig
    finetune: FinetuneConfig | None
    seed: int
    """`run.seed`."""
    sequence_length: int
    """`data.sequence_length`."""

    @classmethod
    def of(cls, config: RunConfig) -> EngineSettings:
        """Those of a run."""
        return cls(
            model=config.model,
            objective=config.objective,
            optimizer=config.optimizer,
            schedule=config.schedule,
            train=config.train,
            parallel=config.parallel,
            engine=config.engine,
            finetune=config.finetune,
            seed=config.run.seed,
            sequence_length=config.data.sequence_length,
        )
