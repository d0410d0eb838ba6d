"""The whole config of a run."""

from typing import Any

from pydantic import model_validator

from data_pipeline.base.section import Section
from data_pipeline.config import DataConfig
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import OBJECTIVES, ObjectiveConfig
from llmscale import families
from llmscale.config.finetune import FinetuneConfig
from llmscale.config.model import HeadConfig, ModelConfig
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
    finetune: FinetuneConfig | None = None
    """What is trained of a model that starts from `train.init_from`; everything when not given."""
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
    """What to do about ranks that hang, losses that jump and silent errors."""

    @model_validator(mode="before")
    @classmethod
    def _objective_before_preset(cls, given: Any) -> Any:
        """What an objective decides, the model's family need not be told: BERT's preset has next_sentence."""
        model, objective = (given.get(name) for name in ("model", "objective")) if isinstance(given, dict) else (0, 0)
        if not isinstance(model, dict) or not isinstance(objective, dict):
            return given
        settings = OBJECTIVES.get(str(objective.get("name")))
        if settings is None or "family" not in model:
            return given
        decided = {name: objective.get(name, settings.model_fields[name].default) for name in settings.decides}
        return {**given, "model": {**decided, **model}}

    @model_validator(mode="after")
    def _finetunes_something(self) -> "RunConfig":
        if self.finetune is not None and self.train.init_from is None:
            raise ValueError(
                "finetune is given, but train.init_from is not, so that there is nothing to fine-tune; set"
                " train.init_from to a checkpoint or run directory, or leave finetune out"
            )
        if self.finetune and self.finetune.forgetting and self.objective.head(self.model.architecture) is not None:
            raise ValueError(
                f"finetune.forgetting measures bits per byte of text, but objective {self.objective.name} puts another"
                f" head in place of the language model's; leave finetune.forgetting out"
            )
        return self

    @model_validator(mode="after")
    def _factors_of_the_section(self) -> "RunConfig":
        wanted = None if self.finetune is None else self.finetune.lora
        if self.model.lora not in (None, wanted):
            raise ValueError(
                f"model.lora is {self.model.lora}, but finetune.lora sets it to {wanted}; leave model.lora out"
            )
        # Not by way of the input, so that nobody has to write it down.
        self.__dict__["model"] = self.model.model_copy(update={"lora": wanted})
        return self

    @model_validator(mode="after")
    def _head_of_the_objective(self) -> "RunConfig":
        settings = self.objective.head(self.model.architecture, self._transforms())
        wanted = None if settings is None else HeadConfig.model_validate(settings)
        if wanted == self.model.head:
            return self
        if self.model.head is not None:
            raise ValueError(
                f"model.head is {self.model.head.model_dump()}, but objective {self.objective.name} sets it to"
                f" {None if wanted is None else wanted.model_dump()}; leave it out"
            )
        # Not by way of the input, so that nobody has to write it down.
        self.__dict__["model"] = self.model.model_copy(update={"head": wanted})
        return self

    def _transforms(self) -> bool:
        """`model.head.transform` where the objective does not say."""
        if self.model.head is not None:
            return self.model.head.transform
        table = getattr(families.family(self.model.family), "HUGGING_FACE", None) if self.model.family else None
        known = table.heads.get(self.objective.name) if table is not None else None
        return known is not None and known.transform
