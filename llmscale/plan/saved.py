"""What autograd keeps of a whole forward pass, by mode of recomputation."""

from __future__ import annotations

from dataclasses import dataclass

from llmscale.model.heads import heads_of
from llmscale.model.heads.head import Sizes
from llmscale.parallel.plans import stage_layers
from llmscale.plan.activations import Activations, Saved, add
from llmscale.plan.parameters import layer_kinds

_FLAG, _INDEX, _WIDE = 1, 8, 4


@dataclass(frozen=True)
class Forward:
    """One micro batch on one pipeline stage, in bytes."""

    kept: Saved
    """Kept from the forward to the backward pass, by part."""
    again: int = 0
    """Of one block, what recomputation brings back for the time of its backward pass."""
    block: int = 0
    """All that one block keeps when nothing is recomputed."""
    head_forward: int = 0
    """Held only while the head computes its loss: a chunk of logits, and the weight's gradient in fp32."""
    head_backward: int = 0
    """Held only while the head's gradients are scaled."""
    block_backward: int = 0
    """Gradients of values inside a block, at most."""

    @property
    def total(self) -> int:
        """Bytes kept."""
        return sum(self.kept.values())


def forward(acts: Activations, stage: int = 0) -> Forward:
    """What one micro batch takes on pipeline stage `stage`."""
    layout, work, model = acts.layout, acts.work, acts.model
    kept: Saved = {}
    if stage == 0:
        add(kept, {"embedding": _embedding(acts)})
    layers = stage_layers(model.layers, layout.pipeline)[stage]
    causal = model.architecture != "encoder"
    again, block = _stack(acts, kept, layers, work.length, work.memory, causal)
    if work.memory:
        encoder = range(model.encoder_layer_count)
        theirs = _stack(acts, kept, encoder, work.memory, 0, False)
        again, block = max(again, theirs[0]), max(block, theirs[1])
        add(kept, {"encoder's result": acts.residual(work.memory)})
        _finish(acts, kept, work.memory)
    last = stage == layout.pipeline - 1
    if last:
        _finish(acts, kept, work.length)
    elif layout.pipeline > 1:
        add(kept, {"sent to the next stage": acts.carried(work.length)})
    head_forward, head_backward = _head(acts, kept) if last else (0, 0)
    return Forward(kept, again, block, head_forward, head_backward, _gradients(acts))


def _embedding(acts: Activations) -> int:
    """Token ids, positions and token types; and the inputs of the embedding's norm."""
    tokens = acts.tokens(acts.work.tokens)
    size = tokens * _INDEX + acts.work.length * _INDEX
    if acts.layout.tensor > 1:
        size += tokens * (_INDEX + _FLAG)
    if acts.model.token_types:
        size += tokens * _INDEX
    if acts.model.embedding_norm:
        size += sum(acts.norm(acts.work.length).values())
    if acts.model.dropout:
        size += acts.residual(acts.work.tokens) // acts.element * _FLAG
    return size


def _stack(acts: Activations, kept: Saved, layers: range, length: int, memory: int, causal: bool) -> tuple[int, int]:
    """Add what the blocks of a stack keep, and give what the largest of them brings back when it is recomputed, and all
    that it has then."""
    add(kept, {"masks and positions": _shared(acts, layers, length, causal)})
    again = block = 0
    for layer, times in layer_kinds(acts.model, layers):
        held, back, full = _block(acts, layer, length, memory, causal)
        again, block = max(again, back), max(block, full)
        add(kept, {"blocks": times * held})
    return again, block


def _block(acts: Activations, layer: int, length: int, memory: int, causal: bool) -> tuple[int, int, int]:
    """(bytes that a block keeps, bytes that its recomputation brings back, bytes without recomputation)."""
    full = sum(acts.block(layer, length, memory, causal=causal).values())
    if acts.layout.activation_checkpointing == "none":
        return full, 0, full
    entering = acts.carried(length)
    if acts.layout.activation_checkpointing == "block":
        return entering, full - entering, full
    held = acts.kept(layer, length, memory)
    # What is kept as the result of one operation need not come back as the input of the next.
    shared = held.get("attention result", 0) + held.get("feed-forward", 0) // (2 if acts.model.gated else 1)
    return entering + sum(held.values()), max(full - entering - shared, 0), full


def _shared(acts: Activations, layers: range, length: int, causal: bool) -> int:
    """Tables, masks and biases that all layers of a stack share."""
    model, work = acts.model, acts.work
    kinds = {model.attention_kind(layer): layer for layer, _ in layer_kinds(model, layers)}
    size = 0
    if model.positions == "rotary":
        size += len(kinds) * length * model.rotated_channels * _WIDE
    pairs = length * length
    # Each kind of layer has its own mask.
    size += sum(acts.flags(layer, length, causal) for layer in kinds.values()) * _FLAG
    fused = model.positions == "alibi" and not (model.attention_dropout and acts.layout_free)
    if model.positions in ("relative", "alibi") and (fused or acts.layout.activation_checkpointing != "none"):
        # Added to scores, biases need not be kept, unless a kernel or a recomputed layer adds them again.
        own = acts.layout.micro_batch if work.masked else 1
        size += pairs * acts.heads()[0] * acts.element * own
    if model.query_layer and layers.stop == model.layers and acts.layout.activation_checkpointing != "none":
        size += length * model.hidden_size * acts.element  # the queries, which the last layer asks with again
    if model.positions == "relative":
        size += pairs * (_INDEX + (_FLAG if causal else 0))
    return size


def _finish(acts: Activations, kept: Saved, length: int) -> None:
    """The norm after a stack, and its dropout."""
    if acts.model.final_norm:
        add(kept, {"final norm": sum(acts.norm(length).values())})
    if acts.model.dropout and acts.model.dropout_scheme == "t5":
        add(kept, {"final norm": acts.residual(length) // acts.element * _FLAG})


def _head(acts: Activations, kept: Saved) -> tuple[int, int]:
    """Add what the heads keep, and give what they hold in their forward and at the start of their backward pass."""
    work = acts.work
    tokens = int(acts.tokens(work.length) * work.targets)
    sizes = Sizes(work.vocab_size, tokens, acts.element, acts.residual(work.length), acts.layout.tensor)
    memory = [head.memory(sizes) for head in heads_of(acts.model)]
    add(kept, {"head": sum(each.kept for each in memory)})
    return max(each.forward for each in memory), sum(each.backward for each in memory)


def _gradients(acts: Activations) -> int:
    """Gradients alive at once inside a block, beyond what is released meanwhile: that of the activation's result (with
    a gate, of both its factors), and of the residual stream."""
    model, length = acts.model, max(acts.work.length, acts.work.memory)
    inner = acts.tokens(length) * model.ffn_channels // acts.layout.tensor * acts.element
    if model.experts is not None:
        routed = acts.tokens(length) * model.experts.per_token
        inner = max(inner, routed * model.expert_channels // acts.layout.tensor * acts.element)
    return inner * (2 if model.gated else 1) + 2 * acts.residual(length)
