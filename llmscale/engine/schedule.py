"""The learning rate as a pure function of the step."""

import math

from llmscale.config.training import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, steps: int, step: int) -> float:
    """Learning rate of step `step` (0-based) of `steps`.

    Warm-up rises linearly, so that step `warmup_steps` is the first at the peak. cosine: half a cosine from the peak
    to `final_fraction` of it at the last step (SGDR, equation 5, without restarts). wsd: the peak until `decay_steps`
    before the end, then linear to `final_fraction` (MiniCPM, section 4). inverse_sqrt: the peak for `stable_steps`,
    at least one, then falling so that rate x sqrt(step + 1) stays (Vaswani et al. 2017, section 5.3). constant: the
    peak.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / (config.warmup_steps + 1)
    if config.name == "constant" or (config.name == "wsd" and config.decay_steps == 0):
        return peak
    if config.name == "inverse_sqrt":
        knee = config.warmup_steps + max(1, config.stable_steps)
        return peak * math.sqrt(knee / max(step + 1, knee))
    if config.name == "cosine":
        progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
        remaining = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    else:
        remaining = max(0.0, min(1.0, (steps - 1 - step) / config.decay_steps))
    return peak * (config.final_fraction + (1 - config.final_fraction) * remaining)
