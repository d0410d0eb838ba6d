"""Peak memory of a rank, by part."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from llmscale.config import RunConfig
from llmscale.config.optimizers import optimizer_kind
from llmscale.model.attention import table_of
from llmscale.parallel.plans import stage_layers
from llmscale.plan.activations import Activations
from llmscale.plan.layout import Layout
from llmscale.plan.parameters import Counts, block_parameters, layer_kinds, parameters
from llmscale.plan.saved import Forward, forward
from llmscale.plan.trained import trained_counts
from llmscale.plan.workload import Workload

_FP32 = 4
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size: weights gathered ahead of their use."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the moment when they are most."""

    weights: int
    """What this rank keeps of the weights that the passes read; nothing where they are offloaded."""
    gradients: int
    """Gradients of weights, and at the optimizer's step their fp32 copy."""
    optimizer: int
    """fp32 masters and the optimizer's moments; nothing where they are offloaded."""
    activations: int
    """Values kept for the backward pass, and gradients of values."""
    buffers: int
    """Communication buckets, and what the head holds while it computes its loss."""
    gathered: int
    """Weights of other ranks, gathered at ZeRO 3 for the time of their use."""
    moment: str
    """When it is most: at the end of the forward pass, when the backward pass begins, reaches the first block or the
    embedding, or reduces its last bucket or (at ZeRO 2) its first one, or (at ZeRO 3) weights come, or at the
    optimizer's step."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "moment")


def element_bytes(config: RunConfig, device: str = "cuda") -> int:
    """Bytes of a value in the arithmetic of the passes."""
    dtype = config.engine.dtype
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
    return _FP32 if dtype == "fp32" else 2


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
    trained = trained_counts(
        config, counts, tensor=layout.tensor, pipeline=layout.pipeline, stage=stage, expert=layout.expert
    )
    learned = sum(trained.values())
    learned_share = _share(learned - trained["experts"], layout.replicas) + _share(
        trained["experts"], layout.expert_replicas
    )
    sizes = Sizes(layout, held, learned, learned_share, narrow=element < _FP32)
    weights = element * (share if layout.zero_stage == 3 else whole)
    optimizer = state_bytes(config, trained, layout) if config.engine.offload == "none" else 0
    if layout.zero_stage == 3 and element == _FP32:
        optimizer = max(optimizer - _FP32 * learned_share, 0)  # Weights in fp32 are their own masters.
    if config.engine.offload == "optimizer_and_weights":
        weights = 0
    gathered = element * _gathered(config, layout, whole, stage) if layout.zero_stage == 3 else 0
    kept = int(held.total * max(in_flight(layout, stage), 1))
    bucket = min(config.engine.bucket_elements, learned)
    early, late = _buckets(layout, _FP32 * bucket, device)
    table = element * config.model.padded_vocab(work.vocab_size) // layout.tensor * config.model.hidden_size
    table = table if trained["embedding"] else 0
    left = int(kept * (1 - bucket / max(learned, 1)))
    moments = {
        "forward": (sizes.standing, kept, held.head_forward + (early if layout.zero_stage == 3 else 0), gathered),
        "backward": (sizes.standing, kept + sizes.values_backward, early, gathered),
        "first block": (
            sizes.all_but(min(_first_block(config, counts, layout), learned)),
            sizes.values_last,
            late,
            gathered,
        ),
        "embedding": (sizes.settled + table * (1 if layout.zero_stage == 1 else 2), 0, late, gathered),
        "step": (sizes.at_step, 0, late if layout.zero_stage == 3 else 0, 0),
    }
    if layout.zero_stage == 3 and layout.replicas > 1:
        # Weights come in one buffer and are copied out of it; the head has not begun yet.
        fetched = element * min(_partitioned(config, counts, layout), PREFETCH_ELEMENTS)
        moments["gathering"] = (sizes.standing, kept - held.kept.get("head", 0), early, gathered + fetched)
    if layout.zero_stage == 2:
        # The room for this rank's share is taken when the first bucket is full, by when some of the values are gone.
        moments["reduction"] = (sizes.reduced, left + held.again + held.block_backward, late, 0)
    # The last bucket is copied on its way into the gradients' sums when these are complete.
    copies = _copies(layout, bucket, element, device) + (late if _contiguous(layout, device) else 0)
    narrow = element * bucket if sizes.narrow and not _contiguous(layout, device) else 0
    moments["last reduction"] = (max(sizes.settled, sizes.reduced) + narrow, 0, copies, gathered)
    found = [
        Memory(weights, gradients, optimizer, activations, buffers, theirs, name)
        for name, (gradients, activations, buffers, theirs) in moments.items()
    ]
    return max(found, key=lambda part: part.total)


@dataclass(frozen=True)
class Sizes:
    """Gradients of one rank, in bytes, as DeepSpeed 0.19.8 holds them: in fp32, whatever the passes compute in."""

    layout: Layout
    held: Forward
    whole: int
    """Elements of the rank's part of the model."""
    share: int
    """Of them, those that ZeRO gives this rank."""
    narrow: bool
    """Whether the passes compute in less than fp32."""

    @property
    def settled(self) -> int:
        """After the backward pass: all of them at stage 1, else this rank's share."""
        return _FP32 * (self.whole if self.layout.zero_stage == 1 else self.share)

    @property
    def standing(self) -> int:
        """While a pass begins: those of earlier micro batches; at stage 3 their room is always taken."""
        return self.settled if self.layout.accumulation > 1 or self.layout.zero_stage == 3 else 0

    @property
    def reduced(self) -> int:
        """While gradients of a micro batch are reduced at stage 2: its share, in fp32 beside that of earlier ones;
        where gradients are narrower than their sums, they are added at once."""
        return self.settled * (2 if self.layout.accumulation > 1 and not self.narrow else 1)

    def all_but(self, missing: int) -> int:
        """When the last gradients to come, `missing` elements, are still missing."""
        if self.layout.zero_stage == 1:
            return self.settled if self.layout.accumulation > 1 else _FP32 * (self.whole - missing)
        return self.reduced if self.layout.zero_stage == 2 else self.settled

    @property
    def values_last(self) -> int:
        """Values and their gradients while the first block, the last of the backward pass, is at work."""
        return self.held.block + self.held.block_backward

    @property
    def values_backward(self) -> int:
        """Gradients of values, and what recomputation brings back, in the first layers of the backward pass."""
        return self.held.again + max(self.held.block_backward, self.held.head_backward)

    @property
    def at_step(self) -> int:
        """The share is laid flat beside the gradients, where it is not flat already: at stage 3, and at 2 where
        gradients are narrower than their sums."""
        flat = self.layout.zero_stage == 3 or (self.layout.zero_stage == 2 and self.narrow)
        return self.settled if flat else max(self.settled, 2 * _FP32 * self.share)


def _share(elements: int, ranks: int) -> int:
    return -(-elements // ranks)


def in_flight(layout: Layout, stage: int) -> float:
    """Micro batches whose activations a stage holds at once under 1F1B; with interleaving in units of a stage's layers
    (Korthikanti et al. 2022, section 4.2.3)."""
    flying = float(min(layout.pipeline - stage, layout.accumulation))
    if layout.interleave > 1 and stage == 0:
        flying *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.interleave)
    return flying


def _gathered(config: RunConfig, layout: Layout, whole: int, stage: int) -> int:
    """Elements that ZeRO 3 holds gathered when forward and backward pass meet: half the reuse distance lies on either
    side, then the largest layer and what is fetched ahead."""
    layers = stage_layers(config.model.layers, layout.pipeline)[stage]
    cross = config.model.architecture == "encoder_decoder"
    largest = max(
        sum(block_parameters(config.model, layer, cross, layout.tensor, layout.expert).values())
        for layer, _ in layer_kinds(config.model, layers)
    )
    if layout.replicas == 1:
        return 0
    return min(whole, config.engine.max_live_parameters // 2 + largest + PREFETCH_ELEMENTS)


def _partitioned(config: RunConfig, counts: Counts, layout: Layout) -> int:
    """Elements of one rank's weights but for those that DeepSpeed leaves whole, since they are small."""
    model = config.model
    attention = max(math.prod(row.local(layout.tensor)) for row in table_of(model).projections)
    feed_forward = model.hidden_size * model.ffn_channels // layout.tensor
    small = counts["norms"]
    if attention <= config.engine.param_persistence_threshold:
        small += counts["attention"] + counts["cross_attention"]
    if feed_forward <= config.engine.param_persistence_threshold:
        small += counts["feed_forward"]
    return max(sum(counts.values()) - small, 0)


def _first_block(config: RunConfig, counts: Counts, layout: Layout) -> int:
    """Elements of the first block and of what lies before it, but for the embedding."""
    cross = config.model.architecture == "encoder_decoder"
    return counts["positions"] + sum(block_parameters(config.model, 0, cross, layout.tensor, layout.expert).values())


def _buckets(layout: Layout, bucket: int, device: str) -> tuple[int, int]:
    """Bytes of buckets that gradients are copied into for the network, when the backward pass (a) begins and (b) has
    filled one: two where they overlap with computing. A CPU mostly has none but while it sends."""
    if device == "cuda" and layout.zero_stage < 3:
        return 2 * bucket, 2 * bucket
    if _contiguous(layout, device):
        return bucket, bucket
    return 0, bucket if layout.replicas > 1 else 0


def _copies(layout: Layout, bucket: int, element: int, device: str) -> int:
    """Bytes of the copies that DeepSpeed makes of a full bucket of gradients, beside the bucket itself: flat, in fp32,
    and at stage 3 sorted by rank."""
    widened = _FP32 * bucket if element < _FP32 else 0
    if layout.zero_stage == 3:
        # gloo sums in a copy of its own.
        return widened + _FP32 * bucket * (2 if device == "cpu" else 1)
    # The one buffer is in fp32 already.
    return _FP32 * bucket if _contiguous(layout, device) else widened + element * bucket


def _contiguous(layout: Layout, device: str) -> bool:
    """Whether gradients are moved into one buffer as they come (DeepSpeed's `contiguous_gradients`, as the engine sets
    it)."""
    return device == "cuda" or layout.zero_stage == 2 or layout.expert > 1


def state_bytes(config: RunConfig, counts: Counts, layout: Layout) -> int:
    """Masters and moments of one rank, which every ZeRO stage shards."""
    matrices = sum(counts[part] for part in ("attention", "cross_attention", "feed_forward", "router"))
    experts = counts["experts"]
    others = sum(counts.values()) - matrices - experts
    kept = optimizer_kind(config.optimizer.name).kept
    hidden, other = (_FP32 * (1 + kept(config.optimizer, inside)) for inside in (True, False))
    dense = matrices * hidden + others * other
    return int(dense / layout.replicas + experts * hidden / layout.expert_replicas)
