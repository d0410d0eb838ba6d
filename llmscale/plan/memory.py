"""Peak memory of a rank, by part."""

from __future__ import annotations

from dataclasses import dataclass, fields

from llmscale.config import RunConfig
from llmscale.plan.activations import Activations
from llmscale.plan.layout import Layout
from llmscale.plan.parameters import Counts, block_parameters, parameters, stage_layers
from llmscale.plan.saved import Forward, forward
from llmscale.plan.workload import Workload

_FP32 = 4
REUSE_ELEMENTS = 1_000_000_000
"""DeepSpeed's stage3_max_reuse_distance: weights that come again within this many elements stay gathered."""
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size: weights gathered ahead of their use."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the moment when they are most."""

    weights: int
    """What this rank keeps of the weights that the passes read."""
    gradients: int
    """Gradients of weights, and at the optimizer's step their fp32 copy."""
    optimizer: int
    """fp32 masters and the optimizer's moments."""
    activations: int
    """Values kept for the backward pass, and gradients of values."""
    buffers: int
    """Communication buckets, and what the head holds while it computes its loss."""
    gathered: int
    """Weights of other ranks, gathered at ZeRO 3 for the time of their use."""
    moment: str
    """When it is most: forward, backward or step."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "moment")


def element_bytes(config: RunConfig, device: str = "cuda") -> int:
    """Bytes of a value in the arithmetic of the passes."""
    dtype = config.engine.dtype
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
    return 2 if dtype == "bf16" else _FP32


def memory(config: RunConfig, work: Workload, layout: Layout, device: str = "cuda") -> Memory:
    """Peak memory of the rank that needs most, on a GPU (`cuda`) or a CPU: of the first or the last stage."""
    stages = {0, layout.pipeline - 1}
    return max((_stage_memory(config, work, layout, stage, device) for stage in stages), key=lambda part: part.total)


def _stage_memory(config: RunConfig, work: Workload, layout: Layout, stage: int, device: str) -> Memory:
    element = element_bytes(config, device)
    acts = Activations(
        config.model,
        work,
        layout,
        element,
        fused_norms=device == "cuda",
        layout_free=config.engine.dropout_layout_free,
    )
    held = forward(acts, stage)
    counts = parameters(
        config.model,
        work.vocab_size,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        stage=stage,
        expert=layout.expert,
    )
    experts = counts["experts"]
    dense = sum(counts.values()) - experts
    share = _share(dense, layout.replicas) + _share(experts, layout.expert_replicas)
    whole = dense + experts
    weights = element * (share if layout.zero_stage == 3 else whole)
    optimizer = state_bytes(config, counts, layout)
    gathered = element * _gathered(config, layout, whole, stage) if layout.zero_stage == 3 else 0
    flying = max(in_flight(layout, stage), 1)
    kept = int(held.total * flying)
    buffers = _buckets(config, layout, whole, element, device)
    moments = [
        ("forward", *_in_forward(layout, held, whole, share, element)),
        ("backward", *_in_backward(layout, held, whole, share, element)),
    ]
    found = [
        Memory(weights, gradients, optimizer, kept + more, buffers + extra, gathered, name)
        for name, gradients, more, extra in moments
    ]
    settled = element * (whole if layout.zero_stage == 1 else share)
    found.append(Memory(weights, settled + _FP32 * share, optimizer, 0, buffers, 0, "step"))
    return max(found, key=lambda part: part.total)


def _share(elements: int, ranks: int) -> int:
    return -(-elements // ranks)


def in_flight(layout: Layout, stage: int) -> float:
    """Micro batches whose activations a stage holds at once under 1F1B; with interleaving in units of a stage's layers
    (Korthikanti et al. 2022, section 4.2.3)."""
    flying = float(min(layout.pipeline - stage, layout.accumulation))
    if layout.interleave > 1 and stage == 0:
        flying *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.interleave)
    return flying


def _in_forward(layout: Layout, held: Forward, whole: int, share: int, element: int) -> tuple[int, int, int]:
    """(gradients, more activations, more buffers) when the head computes its loss."""
    return _standing(layout, whole, share, element), 0, held.head_forward


def _in_backward(layout: Layout, held: Forward, whole: int, share: int, element: int) -> tuple[int, int, int]:
    """The same when the first blocks of the backward pass run."""
    return (
        _standing(layout, whole, share, element),
        held.again + max(held.block_backward, held.head_backward),
        0,
    )


def _standing(layout: Layout, whole: int, share: int, element: int) -> int:
    """Gradients of earlier micro batches, which stand while a later one runs; at ZeRO 3 their room is always taken."""
    if layout.zero_stage == 3:
        return element * share
    if layout.accumulation == 1:
        return 0
    return element * (whole if layout.zero_stage == 1 else share)


def _gathered(config: RunConfig, layout: Layout, whole: int, stage: int) -> int:
    """Elements that ZeRO 3 holds gathered when forward and backward pass meet: half the reuse distance lies on either
    side, then the largest layer and what is fetched ahead."""
    layers = stage_layers(config.model.layers, layout.pipeline, stage)
    cross = config.model.architecture == "encoder_decoder"
    largest = max(
        sum(block_parameters(config.model, layer, cross, layout.tensor, layout.expert).values()) for layer in layers
    )
    return min(whole, REUSE_ELEMENTS // 2 + largest + PREFETCH_ELEMENTS)


def _buckets(config: RunConfig, layout: Layout, whole: int, element: int, device: str) -> int:
    """Buckets that gradients are copied into for the network: two where it overlaps with computing."""
    if layout.replicas == 1:
        return 0
    bucket = min(config.engine.bucket_elements, whole) * element
    return bucket * (2 if device == "cuda" and layout.zero_stage < 3 else 1)


def state_bytes(config: RunConfig, counts: Counts, layout: Layout) -> int:
    """Masters and moments of one rank, which every ZeRO stage shards."""
    matrices = sum(counts[part] for part in ("attention", "cross_attention", "feed_forward", "router"))
    experts = counts["experts"]
    others = sum(counts.values()) - matrices - experts
    hidden, other = _moments(config)
    dense = matrices * (_FP32 + hidden) + others * (_FP32 + other)
    return int(dense / layout.replicas + experts * (_FP32 + hidden) / layout.expert_replicas)


def _moments(config: RunConfig) -> tuple[int, int]:
    """Bytes of moments for each element: (of matrices inside blocks, of everything else).

    AdamW has two (Kingma and Ba 2015), Lion one (Chen et al. 2023), Muon one for hidden matrices and AdamW's two for
    the rest, SGD and Adafactor one where they have momentum; Adafactor's sums by row and column are left out.
    """
    optimizer = config.optimizer
    if optimizer.name == "adamw":
        return 2 * _FP32, 2 * _FP32
    if optimizer.name == "muon":
        return _FP32, 2 * _FP32
    if optimizer.name == "lion":
        return _FP32, _FP32
    kept = _FP32 if optimizer.momentum else 0
    return kept, kept
