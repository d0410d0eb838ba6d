"""How a run is laid out over ranks: what every forecast is a function of, besides the config."""

from __future__ import annotations

from dataclasses import dataclass

from llmscale import layout as layouts
from llmscale.config import RunConfig
from llmscale.config.training import micro_batches


@dataclass(frozen=True)
class Layout:
    """Sizes of all axes, and the settings that trade memory for time."""

    data: int = 1
    """Data-parallel size."""
    tensor: int = 1
    """Tensor-parallel size."""
    sequence_parallel: bool = False
    """Whether tensor-parallel ranks share the residual stream by positions (Korthikanti et al. 2022)."""
    context: int = 1
    """Ulysses' context-parallel size; for ZeRO these ranks count as data-parallel."""
    pipeline: int = 1
    """Pipeline stages."""
    expert: int = 1
    """Expert-parallel size; divides `data`."""
    zero_stage: int = 1
    """DeepSpeed ZeRO: 1 shards optimizer state, 2 gradients too, 3 weights too; 0 (never in the trainer): nothing."""
    activation_checkpointing: str = "none"
    """none, selective or block, as `engine.activation_checkpointing`."""
    micro_batch: int = 1
    """Samples of one forward pass of one data-parallel rank."""
    accumulation: int = 1
    """Micro batches of a step."""
    interleave: int = 1
    """Model chunks of a pipeline stage (Narayanan et al. 2021, section 2.2); the trainer itself uses 1."""

    @property
    def world_size(self) -> int:
        return self.pipeline * self.data * self.context * self.tensor

    @property
    def replicas(self) -> int:
        """Ranks that ZeRO shards the dense parameters over."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> int:
        """Ranks that ZeRO shards the parameters of one group of experts over."""
        return self.replicas // self.expert

    @property
    def in_flight(self) -> int:
        """Micro batches whose activations the first stage holds at once under 1F1B (Narayanan et al. 2021, 2.2.1)."""
        return min(self.pipeline, self.accumulation)


def layout_of(config: RunConfig, legal: layouts.Layout, largest: int) -> Layout:
    """A legal layout of a run, with micro batches of at most `largest` samples."""
    data = legal.replicas
    micro, accumulation = micro_batches(max(config.train.global_batch // data, 1), largest)
    return Layout(
        data=data,
        tensor=legal.tensor,
        sequence_parallel=legal.sequence_parallel,
        context=legal.context,
        pipeline=legal.pipeline,
        expert=legal.expert,
        zero_stage=legal.zero_stage,
        activation_checkpointing=legal.activation_checkpointing,
        micro_batch=micro,
        accumulation=accumulation,
    )
