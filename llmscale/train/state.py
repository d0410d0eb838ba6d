"""Where a run stands, and what a step did: what the loop tells its callbacks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmscale.train.recoveries import Recent, Skip
from llmscale.train.resume import Best, Resume


class Figure(NamedTuple):
    """A figure of the model after some step."""

    value: float
    higher_is_better: bool = False


@dataclass(frozen=True)
class StepResult:
    """What one step did, over all ranks."""

    step: int
    """Steps done, this one included."""
    losses: dict[str, float]
    """Mean of each term of the loss over the global batch: `loss` per target token, in nats, and the others."""
    grad_norm: float
    """Norm of the gradient before clipping; -1 where it was not finite."""
    lr: float
    tokens: int
    """Target tokens of the global batch."""
    data_seconds: float
    """Time that this rank waited for data."""
    forward_seconds: float
    """Time of this rank's forward passes; 0 in a pipeline, whose stages wait for each other in them."""
    step_seconds: float
    skipped: bool
    """The global batch had no target, or its gradient was not finite."""
    samples: int
    """Samples of the global batch."""
    ledger_sum: int
    """Of the global batch, as the ledger has it."""
    left_out: tuple[tuple[int, int, int], ...] = ()
    """Samples that were skipped just before it: first and last of each range, and the ledger's sum of them."""

    @property
    def loss(self) -> float:
        """Mean loss per target token of the global batch, in nats."""
        return self.losses["loss"]


@dataclass
class TrainState:
    """Where a run stands. The loop moves it on, callbacks read it."""

    steps: int
    """To train in all."""
    first: int
    """Steps that were done when this attempt began."""
    step: int
    """Steps done."""
    samples: int
    """Samples of the global order that they consumed."""
    tokens: int
    skipped_steps: int
    seconds: float
    """Time that they took, of all attempts."""
    evaluation: dict[str, Any] | None = None
    """Figures of the finished model."""
    forgotten: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Bits per byte `before` and `after`, by source of `finetune.forgetting`."""
    preempted: bool = False
    """A preemption signal has reached some rank."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """What was measured after this step: `loss` of what is held out, and `task/metric`."""
    best: Best | None = None
    """The best of `evaluation.best` so far."""
    stopped: bool = False
    """`evaluation.patience` is over."""
    saved: int = -1
    """The step of the checkpoint that this attempt began to write last; -1 before the first."""
    phase: str = "starting"
    """What this rank is in, for whoever asks why it does not go on."""
    place: int = 0
    """Of the phase within its step, in the order in which ranks pass through them."""
    in_step: bool = False
    """Whether a step has begun that is not done."""
    evaluating: bool = False
    """Whether the phase is an evaluation, which takes as long as it takes."""
    beats: int = 0
    """Signs of progress so far."""
    skips: list[Skip] = field(default_factory=list)
    """Samples that no step is trained on, in their order."""
    recent: deque[Recent] = field(default_factory=deque)
    """The newest steps, for the next look whether a loss has jumped."""
    checked: int = 0
    """Micro batches that this attempt has computed twice, with one result."""
    diverging: bool = False
    """The last steps were skipped, so that no checkpoint should take the place of an earlier one."""

    @classmethod
    def after(cls, resume: Resume, steps: int) -> TrainState:
        """Where an attempt begins."""
        return cls(
            steps=steps,
            first=resume.step,
            step=resume.step,
            samples=resume.samples,
            tokens=resume.tokens,
            skipped_steps=resume.skipped_steps,
            seconds=resume.seconds,
            best=resume.best,
            skips=resume.skips,
            recent=resume.recent,
        )

    def enter(self, phase: str, place: int, evaluating: bool = False) -> None:
        """Say what this rank does from here on."""
        self.phase, self.place, self.evaluating = phase, place, evaluating
        self.beat()

    def beat(self) -> None:
        """Say that this rank gets further within what takes long."""
        self.beats += 1

    @property
    def finished(self) -> bool:
        """All steps are done, or no more of them are wanted."""
        return self.step >= self.steps or self.stopped
