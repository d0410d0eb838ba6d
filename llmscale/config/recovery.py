"""What a run does about ranks that hang, losses that jump, and processors that compute wrongly."""

from pydantic import Field

from data_pipeline.base.section import Section


class SpikesConfig(Section):
    """When a loss counts as a spike, and what of the data is left out then.

    The score of a step is its loss less the median of the `window` losses before it, in robust standard deviations
    (1.4826 x their median absolute deviation, Huber, Robust Statistics, 1981, section 5.1; at least 0.01 nats). A run
    goes back to the newest checkpoint before the samples that are skipped, or to step 0.
    """

    window: int = Field(default=64, ge=4, le=4096)
    """Steps whose losses are looked at; until there are so many, nothing is a spike."""
    threshold: float = Field(default=10.0, gt=0)
    """Score above which a loss is a spike."""
    skip_before: int = Field(default=0, ge=0, le=4096)
    """Steps before the spike whose samples are skipped with its own."""
    skip_after: int = Field(default=0, ge=0, le=4096)
    """Steps' worth of samples after the spike that are skipped too."""
    tries: int = Field(default=8, ge=1, le=1000)
    """How often a run goes back because of the same step; after that a spike at it ends the run."""


class RecoveryConfig(Section):
    """When a run that makes no progress, or goes wrong, is given up or set back, and where it continues."""

    hang_seconds: float | None = Field(default=None, ge=0, le=604800)
    """Seconds without progress on some rank after which all write their Python stacks to their logs and end with code
    76. A part of a step (data, forward and backward pass, sums over ranks), a batch of an evaluation and the work of a
    callback are progress; until the first step is done it is ten times as long, for compilation. 0: never. When not
    given: with several ranks ten times the longest such part so far, at least 15 minutes, and not in evaluations."""
    collective_seconds: float = Field(default=1800, gt=0, le=604800)
    """How long an operation among ranks may take before torch ends it with an error."""
    node_exclusions: int = Field(default=2, ge=0, le=1000)
    """How often a Slurm job goes back into the queue without nodes that fail the check before its ranks start (run
    folder, disk, address, clock, GPUs), or on which a silent error was met; after that it ends. 0: nothing is
    checked."""
    spikes: SpikesConfig | None = None
    """What to do about losses that jump; not given: nothing. What was skipped stays skipped when this changes."""
    check_every: int = Field(default=0, ge=0, lt=2**31)
    """Steps between looks for silent errors: a micro batch is computed twice, and where a bit differs the run names the
    rank and ends with code 75. 0: never."""
