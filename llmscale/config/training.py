"""How the model learns: optimizer, schedule, steps."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_pipeline.base.section import Section
from llmscale.config.bounds import BigCount, Count
from llmscale.config.optimizers import NAMES, OptimizerName, description, optimizer_kind

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """How gradients become updates."""

    name: OptimizerName = Field(default="adamw", description=description())
    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate; under adafactor with scale_parameter it is relative to the size of each tensor."""
    adamw_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of what muon leaves to AdamW; lr when not given."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """Decay rates of AdamW's two moments; of lion's update and momentum, where they are 0.9 and 0.99 when not given."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of sgd, muon (0.95 when not given) and adafactor (of its updates; 0 keeps none)."""
    scale_parameter: bool = True
    """adafactor: multiply the learning rate by the root mean square of each tensor, at least 1e-3."""
    nesterov: bool = True
    """muon: orthogonalise the gradient moved towards the momentum, not the momentum itself."""
    newton_schulz_steps: int = Field(default=5, ge=1, lt=100)
    """muon: iterations of the orthogonalisation."""
    lr_adjustment: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """muon: what multiplies the learning rate of a matrix. original: sqrt(max(1, rows / columns)); match_rms_adamw:
    0.2 sqrt(max(rows, columns)), with which AdamW's learning rate and weight decay fit."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, on matrices only (not on norms and biases)."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the whole gradient; 0 turns clipping off."""

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, raw: Any) -> Any:
        """Fill in what an optimizer's own paper takes where it is not what stands above, so that a dump states it."""
        if not isinstance(raw, dict):
            return raw
        name = raw.get("name")
        return {**(optimizer_kind(name).defaults if name in NAMES else {}), **raw}


class ScheduleConfig(Section):
    """How the learning rate moves over the steps."""

    name: Literal["cosine", "wsd", "inverse_sqrt", "constant"] = "cosine"
    """cosine: half a cosine to the final fraction; wsd: warm-up, stable, linear decay (MiniCPM, section 4);
    inverse_sqrt: warm-up, stable, then as 1 / sqrt(step) (Vaswani et al. 2017, section 5.3; T5, section 3.1.2);
    constant: flat after warm-up."""
    warmup_steps: Count = Field(default=0, ge=0)
    """Steps of linear warm-up from 0."""
    decay_steps: Count = Field(default=0, ge=0)
    """Steps of the final decay of wsd."""
    stable_steps: Count = Field(default=0, ge=0)
    """Steps at the peak of inverse_sqrt before it falls, at least one; T5 has ten thousand of them and no warm-up."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step, as a fraction of the peak (cosine and wsd)."""


class BatchRamp(Section):
    """A global batch that grows in equal steps (GPT-3, section 2.3)."""

    start: Count = Field(ge=1)
    """Samples of the first steps."""
    increment: Count = Field(ge=1)
    """Samples by which the batch grows each time; `global_batch` - `start` is a multiple of it."""
    samples: BigCount = Field(ge=1)
    """Samples of the run after which the batch is `global_batch`."""


class TrainConfig(Section):
    """How long, and how many samples at a time."""

    steps: Count = Field(default=1000, ge=1)
    """Optimizer steps. With `epochs` they follow from the data."""
    epochs: float | None = Field(default=None, gt=0)
    """Instead of `steps`: passes over the training data, which must have an end (see data.order). Every sample counts
    exactly once a pass; the last step is padded with samples of weight 0."""
    global_batch: Count = Field(default=32, ge=1)
    """Samples per optimizer step, over all ranks."""
    batch_ramp: BatchRamp | None = None
    """How the global batch grows to `global_batch` at the start; not together with `epochs`."""
    micro_batch: Count = Field(default=8, ge=1)
    """Most samples in one forward pass of one rank. Accumulation is derived; changes nothing but speed and memory."""
    init_from: str | None = Field(default=None, min_length=1)
    """A checkpoint (or run directory) whose weights the run starts from; optimizer, data and steps start from step 0.
    Where `objective` and `data.tokenizer` are left out they are those of the checkpoint, and so is `model` but for what
    it changes. `model` must compute what it does there; other rotary settings, for a longer context, come with a
    warning."""


def micro_batches(samples: int, largest: int) -> tuple[int, int]:
    """(samples of a micro batch, micro batches of a step) of one data-parallel rank that has `samples` samples of the
    step: the largest equal parts of at most `largest` samples."""
    micro = max(part for part in range(1, min(largest, samples) + 1) if samples % part == 0)
    return micro, samples // micro


class LearningChecks:
    """Checks over several sections, mixed into the whole config."""

    train: TrainConfig
    schedule: ScheduleConfig

    @model_validator(mode="after")
    def _schedule_fits(self) -> "LearningChecks":
        if self.train.epochs is None:
            require_schedule_fits(self.schedule, self.train.steps)
        return self

    @model_validator(mode="after")
    def _ramp_fits(self) -> "LearningChecks":
        ramp, batch = self.train.batch_ramp, self.train.global_batch
        if ramp is None:
            return self
        if ramp.start >= batch or (batch - ramp.start) % ramp.increment:
            raise ValueError(
                f"train.batch_ramp goes from {ramp.start} in steps of {ramp.increment}, which does not lead to"
                f" train.global_batch ({batch}); set train.batch_ramp.increment to a divisor of the difference"
            )
        if self.train.epochs is not None:
            raise ValueError("train.batch_ramp and train.epochs are both given; use one of them")
        return self


def require_schedule_fits(schedule: ScheduleConfig, steps: int) -> None:
    """Raise ValueError when warm-up and decay take more than `steps` steps."""
    used = schedule.warmup_steps + (schedule.decay_steps if schedule.name == "wsd" else 0)
    if used > steps:
        raise ValueError(
            f"schedule.warmup_steps + schedule.decay_steps ({used}) exceed train.steps ({steps});"
            f" shorten them or train longer"
        )
