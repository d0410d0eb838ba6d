"""The global batch of every step: constant, or growing at the start."""

from llmscale.config.training import TrainConfig


def batch_at(config: TrainConfig, samples: int) -> int:
    """Samples of the step that begins after `samples` samples of the run.

    With a ramp the batch grows by `increment` each time that another equal part of `batch_ramp.samples` is done, as
    Megatron-LM's --rampup-batch-size does.
    """
    ramp = config.batch_ramp
    if ramp is None or samples >= ramp.samples:
        return config.global_batch
    increments = (config.global_batch - ramp.start) // ramp.increment
    return ramp.start + ramp.increment * (samples * increments // ramp.samples)
