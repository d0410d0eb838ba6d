"""The whole config of a run."""

from data_pipeline.base.section import Section
from data_pipeline.config import DataConfig
from data_pipeline.objectives.config import CausalObjective, ObjectiveConfig
from llmscale.config.model import ModelConfig
from llmscale.config.recovery import RecoveryConfig
from llmscale.config.system import (
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    LoggingConfig,
    ParallelConfig,
    RunSection,
)
from llmscale.config.training import (
    LearningChecks,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


class RunConfig(LearningChecks, Section):
    """Everything a run needs: a run is a function of this and nothing else."""

    run: RunSection
    """Directory, seed, threads and device."""
    data: DataConfig
    """Sources, tokenizer and order of the data."""
    model: ModelConfig = ModelConfig()
    """Shape of the model."""
    objective: ObjectiveConfig = CausalObjective()
    """What is predicted."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients become updates."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the steps."""
    train: TrainConfig = TrainConfig()
    """Steps and batch sizes."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout over ranks."""
    engine: EngineConfig = EngineConfig()
    """DeepSpeed and numerics."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and how to evaluate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save and what to keep."""
    logging: LoggingConfig = LoggingConfig()
    """What to report."""
    recovery: RecoveryConfig = RecoveryConfig()
    """What to do about ranks that hang."""
