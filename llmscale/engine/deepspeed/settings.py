"""DeepSpeed's own config."""

from __future__ import annotations

from typing import Any

import torch

from llmscale.config.training import micro_batches
from llmscale.engine.settings import EngineSettings
from llmscale.parallel.grid import RankGrid


def deepspeed_config(
    config: EngineSettings, grid: RankGrid, device: torch.device, dtype: torch.dtype, parameters: int
) -> dict[str, Any]:
    """DeepSpeed's own config. The global batch is left out: DeepSpeed derives it and would check it.

    `parameters`: elements that this rank holds before ZeRO shares them.
    """
    micro, steps = micro_batches(config.train.global_batch // grid.data, config.train.micro_batch)
    on_gpu = device.type == "cuda"
    settings = config.engine
    # DeepSpeed wants an even number, and refuses to start on ranks otherwise.
    bucket = min(settings.bucket_elements, parameters)
    bucket += bucket % 2
    away = {"device": "cpu", "pin_memory": on_gpu}
    offload = {} if settings.offload == "none" else {"offload_optimizer": away}
    if settings.offload == "optimizer_and_weights":
        offload["offload_param"] = away
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "gradient_clipping": config.optimizer.clip,
        "zero_allow_untested_optimizer": True,
        # Its own optimizer for offloading takes a minute and a half to compile; torch's fused AdamW runs on CPUs too.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16, "initial_scale_power": settings.initial_scale_power},
        # Gradients are summed over micro batches and over ranks in fp32, whatever the passes compute in.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": settings.zero_stage,
            "stage3_param_persistence_threshold": settings.param_persistence_threshold,
            "stage3_max_live_parameters": settings.max_live_parameters,
            "stage3_max_reuse_distance": settings.max_live_parameters,
            **offload,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": on_gpu,
            # Copying gradients into one buffer pays only where it feeds a network of its own; without it DeepSpeed
            # would add up those of experts over all ranks.
            "contiguous_gradients": on_gpu or settings.zero_stage == 2 or grid.expert > 1,
        },
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
