"""Model FLOPs utilisation: the share of the devices' peak that the model's own operations take (Chowdhery et al. 2022,
"PaLM", appendix B)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from llmscale.config import RunConfig
from llmscale.distributed.process_group import World
from llmscale.plan.flops import flops
from llmscale.plan.hardware import hardware_of
from llmscale.plan.workload import workload_of


@dataclass(frozen=True)
class Utilisation:
    """What MFU is made of."""

    sample_flops: int
    """Operations of the forward and backward pass of one sample, without recomputation."""
    peak: float | None
    """Operations per second of one device at most; None where nobody knows."""
    devices: int

    def mfu(self, samples: int, seconds: float) -> float | None:
        """Of `samples` trained on in `seconds`; None without a peak."""
        if self.peak is None or seconds <= 0:
            return None
        return samples * self.sample_flops / seconds / (self.devices * self.peak)


def utilisation_of(config: RunConfig, vocabulary: int, dtype: torch.dtype, world: World) -> Utilisation:
    """Of a run on these devices. `vocabulary`: tokens of its tokenizer."""
    peak = config.logging.peak_flops
    if peak is None and world.device.type == "cuda":
        hardware = hardware_of(torch.cuda.get_device_name(world.device))
        peak = None if hardware is None else hardware.peak(dtype.itemsize)
    known = config.model_copy(
        update={"model": config.model.model_copy(update={"vocab_size": config.model.vocabulary(vocabulary)})}
    )
    return Utilisation(flops(known.model, workload_of(known)).model, peak, world.size)
