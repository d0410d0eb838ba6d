"""What a run does about ranks that hang."""

from pydantic import Field

from data_pipeline.base.section import Section


class RecoveryConfig(Section):
    """When a run that makes no progress is given up, so that it can be started again from its newest checkpoint."""

    hang_seconds: float | None = Field(default=None, ge=0, le=604800)
    """Seconds without progress on some rank after which all write their Python stacks to their logs and end with code
    76. A part of a step (data, forward and backward pass, sums over ranks), a batch of an evaluation and the work of a
    callback are progress; until the first step is done it is ten times as long, for compilation. 0: never. When not
    given: with several ranks ten times the longest such part so far, at least 15 minutes, and not in evaluations."""
    collective_seconds: float = Field(default=1800, gt=0, le=604800)
    """How long an operation among ranks may take before torch ends it with an error."""
