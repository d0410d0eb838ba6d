"""How long one layer, and the head, take on one rank for one micro batch."""

from __future__ import annotations

from dataclasses import dataclass

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of
from llmscale.model.attention.table import AttentionTable
from llmscale.model.heads import heads_of
from llmscale.model.heads.language import CHUNK_TOKENS
from llmscale.plan import kernels
from llmscale.plan.flops import seen
from llmscale.plan.hardware import Hardware
from llmscale.plan.layout import Layout
from llmscale.plan.workload import Workload

_FLAG, _WIDE = 1, 4
HASH_BYTES = 14 * 16
"""Traffic of hashed dropout for each value where its fourteen operations on int64 words are kernels of their own
(`llmscale.model.dropout`)."""


@dataclass(frozen=True)
class Software:
    """How the layers are computed, where it is not the config that says so."""

    fused: bool = False
    """Whether operations by element are fused with their neighbours, as torch.compile and Megatron-LM do."""
    explicit_attention: bool = False
    """Whether scores are held in memory, as before FlashAttention and as hashed attention dropout needs it."""
    hashed_dropout: bool = True
    """Whether dropout is drawn by hash; else the kernel draws."""
    element: int = 2
    """Bytes of a value."""
    gradient: int = 4
    """Bytes in which gradients of weights are summed, over micro batches and over ranks."""


@dataclass(frozen=True)
class Time:
    """Seconds by kind of work."""

    products: float = 0.0
    """Matrix products with weights."""
    attention: float = 0.0
    """Scores, softmax and mixing."""
    passes: float = 0.0
    """Norms, activations, sums, rotations: bound by memory."""
    tensor: float = 0.0
    """Communication within the layer: tensor, context and expert parallel."""

    def __add__(self, other: Time) -> Time:
        return Time(
            self.products + other.products,
            self.attention + other.attention,
            self.passes + other.passes,
            self.tensor + other.tensor,
        )

    def times(self, factor: float) -> Time:
        return Time(self.products * factor, self.attention * factor, self.passes * factor, self.tensor * factor)

    @property
    def total(self) -> float:
        return self.products + self.attention + self.passes + self.tensor


@dataclass(frozen=True)
class Layer:
    """Times of one rank's part of a layer. How often an operation passes over its values is counted by hand from
    `llmscale.model`, not measured: an unfused rotation, for one, seventeen times."""

    gpu: Hardware
    model: ModelConfig
    layout: Layout
    software: Software

    def tokens(self, length: int) -> int:
        return self.layout.micro_batch * length // self.layout.context

    def forward_and_backward(
        self, layer: int, length: int, memory: int, causal: bool, masked: bool = False
    ) -> tuple[Time, Time]:
        """(forward, backward without recomputation) of layer `layer` over `length` tokens of each sample; `memory`
        tokens of the encoder's result are asked where there are some."""
        forward, backward = self._attention(layer, length, length, causal, masked)
        if memory:
            more = self._attention(layer, length, memory, False, masked, cross=True)
            forward, backward = forward + more[0], backward + more[1]
        if self.model.has_experts(layer):
            more = self._experts(length)
            forward, backward = forward + more[0], backward + more[1]
        if dense := self.model.dense_channels(layer):
            more = self._feed_forward(length, dense)
            forward, backward = forward + more[0], backward + more[1]
        norms, sublayers = self.model.block_norms(layer, bool(memory)), 3 if memory else 2
        passes = self._around(length, norms, sublayers)
        return forward + Time(passes=passes[0]), backward + Time(passes=passes[1])

    def linear(self, tokens: int, outputs: int, inputs: int) -> tuple[float, float]:
        """A product with a weight, forward and backward: gradients of inputs and of the weight."""
        element = self.software.element
        forward = kernels.product(self.gpu, tokens, outputs, inputs, element)
        by_input = kernels.product(self.gpu, tokens, inputs, outputs, element)
        return forward, by_input + kernels.product(self.gpu, outputs, inputs, tokens, element)

    def _linears(self, shapes: list[tuple[int, int, int]]) -> tuple[Time, Time]:
        pairs = [self.linear(*shape) for shape in shapes]
        return Time(products=sum(pair[0] for pair in pairs)), Time(products=sum(pair[1] for pair in pairs))

    def _attention(
        self, layer: int, length: int, asked: int, causal: bool, masked: bool, cross: bool = False
    ) -> tuple[Time, Time]:
        model, layout, element = self.model, self.layout, self.software.element
        table = table_of(model, cross)
        heads, shared = table.local_heads(layout.tensor)
        tokens, others = self.tokens(length), self.tokens(asked)
        # Query, key and value are three products in this model; one wide one would cost the same but for its edges.
        forward, backward = self._linears(
            [
                (others if row.name in ("key", "value") else tokens, *row.local(layout.tensor))
                for row in table.projections
            ]
        )
        pairs = length * asked if cross else seen(model, layer, length, causal, not masked)
        core = self._explicit if self.software.explicit_attention else self._flash
        own = core(layout.micro_batch * heads // layout.context, length, asked, pairs)
        forward, backward = forward + own[0], backward + own[1]
        if model.rotates(layer) and not cross:
            turned = (tokens * heads + others * shared) * model.rotated_channels * element
            turned *= 2 if self.software.fused else 17
            forward += Time(passes=kernels.pass_over(self.gpu, turned))
            backward += Time(passes=kernels.pass_over(self.gpu, turned))
        for norm in table.norms:
            values = tokens * norm.vectors(layout.tensor) * norm.elements(layout.tensor) * element
            forward += Time(passes=kernels.pass_over(self.gpu, 2 * values))
            backward += Time(passes=kernels.pass_over(self.gpu, 3 * values))
        return self._communicated(forward, backward, length, asked, table)

    def _flash(self, heads: int, length: int, asked: int, pairs: int) -> tuple[Time, Time]:
        """Fused attention (Dao 2023, section 4.1): 4 operations a pair and channel, 2.5 times as many backward."""
        table = table_of(self.model)
        work = 2 * heads * pairs * (table.key_channels + table.value_channels)
        peak = self.gpu.peak(self.software.element)
        gap = self.gpu.kernel_gap
        return (
            Time(attention=work / (peak * self.gpu.attention_forward) + gap),
            Time(attention=2.5 * work / (peak * self.gpu.attention_backward) + gap),
        )

    def _explicit(self, heads: int, length: int, asked: int, pairs: int) -> tuple[Time, Time]:
        """Two products for each head, and softmax and dropout over scores in memory."""
        element, table, gpu = self.software.element, table_of(self.model), self.gpu
        scores = heads * length * asked
        once = kernels.product(gpu, length, asked, table.key_channels, element, heads)
        mix = kernels.product(gpu, length, table.value_channels, asked, element, heads)
        if self.software.fused:
            softmax, softmax_back = 2 * element * scores, 3 * element * scores
        else:  # masked, widened to fp32, and back
            softmax, softmax_back = (4 * element + 2 * _WIDE + 2 * element) * scores, (3 * _WIDE + 3 * element) * scores
        drops = self.model.attention_dropout > 0
        drop, drop_back = self._drop(scores) if drops else (0.0, 0.0)
        copied = heads * length * (table.key_channels + table.value_channels) * element
        forward = once + mix + kernels.pass_over(gpu, softmax) + drop + kernels.pass_over(gpu, copied)
        backward = 2 * (once + mix) + kernels.pass_over(gpu, softmax_back) + drop_back + kernels.pass_over(gpu, copied)
        return Time(attention=forward), Time(attention=backward)

    def _drop(self, values: int) -> tuple[float, float]:
        """Dropping values in a kernel of its own, forward and backward."""
        element = self.software.element
        hashed = HASH_BYTES if self.software.hashed_dropout and not self.software.fused else 0
        passes = 2 * element + _FLAG + (0 if self.software.fused else 2 * element) + hashed
        return kernels.pass_over(self.gpu, passes * values), kernels.pass_over(self.gpu, (2 * element + _FLAG) * values)

    def _feed_forward(self, length: int, channels: int) -> tuple[Time, Time]:
        model = self.model
        tokens, inner = self.tokens(length), channels // self.layout.tensor
        into = [(tokens, inner, model.hidden_size)] * (2 if model.gated else 1)
        forward, backward = self._linears([*into, (tokens, model.hidden_size, inner)])
        passes = self._activation(tokens * inner)
        forward, backward = forward + Time(passes=passes[0]), backward + Time(passes=passes[1])
        return self._reduced(forward, backward, length)

    def _activation(self, values: int) -> tuple[float, float]:
        """The activation, and the product with a gate: one kernel when fused, else one for each operation."""
        size = values * self.software.element
        gated = (3, 5) if self.software.fused else (5, 9)
        passes = gated if self.model.gated else (2, 3)
        forward, backward = (kernels.pass_over(self.gpu, count * size) for count in passes)
        if self.model.dropout and self.model.dropout_scheme == "t5":
            drop = self._drop(values)
            forward, backward = forward + drop[0], backward + drop[1]
        return forward, backward

    def _experts(self, length: int) -> tuple[Time, Time]:
        """Router, exchange, and products of each expert with its share of the tokens."""
        model, settings, element = self.model, self.model.experts, self.software.element
        assert settings is not None
        tokens, hidden = self.tokens(length), model.hidden_size
        routed = tokens * settings.per_token
        local = settings.count // self.layout.expert
        each, inner = max(routed // local, 1), model.expert_channels // self.layout.tensor
        forward, backward = self._linears([(tokens, settings.count, hidden)])
        shapes = [(inner, hidden)] * (2 if model.gated else 1) + [(hidden, inner)]
        for outputs, inputs in shapes:
            once = kernels.product(self.gpu, each, outputs, inputs, element, local)
            back = kernels.product(self.gpu, each, inputs, outputs, element, local)
            back += kernels.product(self.gpu, outputs, inputs, each, element, local)
            forward, backward = forward + Time(products=once), backward + Time(products=back)
        passes = self._activation(routed * inner)
        moved = routed * hidden * element
        ordering = kernels.pass_over(self.gpu, 7 * moved)
        forward += Time(passes=passes[0] + ordering)
        backward += Time(passes=passes[1] + ordering)
        if self.layout.expert > 1:
            group = kernels.ranks(self.gpu, self.layout.expert, self.layout.tensor * self.layout.context)
            both = Time(tensor=2 * kernels.exchange(self.gpu, moved, group))
            forward, backward = forward + both, backward + both
        return self._reduced(forward, backward, length)

    def _reduced(self, forward: Time, backward: Time, length: int) -> tuple[Time, Time]:
        """With the sum over tensor-parallel ranks after a sub-layer, and that of its input's gradient: an all-reduce
        each (Shoeybi et al. 2019, section 3), or a reduce-scatter and an all-gather (Korthikanti et al. 2022)."""
        layout = self.layout
        group = kernels.ranks(self.gpu, layout.tensor, 1)
        size = self.tokens(length) * self.model.hidden_size * self.software.element
        if layout.sequence_parallel:
            both = Time(tensor=2 * kernels.gather(self.gpu, size, group))
        else:
            both = Time(tensor=kernels.all_reduce(self.gpu, size, group))
        return forward + both, backward + both

    def _communicated(
        self, forward: Time, backward: Time, length: int, asked: int, table: AttentionTable
    ) -> tuple[Time, Time]:
        """Attention with its communication: besides `_reduced`, Ulysses' exchange of positions for heads."""
        layout = self.layout
        if layout.context > 1:
            group = kernels.ranks(self.gpu, layout.context, layout.tensor)
            heads, shared = table.local_heads(layout.tensor)
            values = [self.tokens(length) * heads, self.tokens(asked) * shared]
            sizes = [size * channels for size in values for channels in (table.key_channels, table.value_channels)]
            both = Time(tensor=sum(kernels.exchange(self.gpu, size * self.software.element, group) for size in sizes))
            forward, backward = forward + both, backward + both
        return self._reduced(forward, backward, length)

    def _around(self, length: int, norms: int, sublayers: int) -> tuple[float, float]:
        """Norms, residual sums and dropout of a block, forward and backward."""
        values = self.tokens(length) * self.model.hidden_size
        if self.layout.sequence_parallel:
            values //= self.layout.tensor
        size = values * self.software.element
        # A norm reads and writes; a sum reads two. Fused, a sum and the norm after it share one reading.
        sums = 2 if self.software.fused else 3
        forward = norms * kernels.pass_over(self.gpu, 2 * size) + sublayers * kernels.pass_over(self.gpu, sums * size)
        backward = norms * kernels.pass_over(self.gpu, 3 * size) + sublayers * kernels.pass_over(self.gpu, 3 * size)
        if self.model.dropout:
            if self.software.fused:  # the mask is written, and read again
                drop = kernels.pass_over(self.gpu, values * _FLAG), kernels.pass_over(self.gpu, 2 * size + values)
            else:
                drop = self._drop(values)
            forward, backward = forward + sublayers * drop[0], backward + sublayers * drop[1]
        return forward, backward


def head_time(gpu: Hardware, model: ModelConfig, work: Workload, layout: Layout, software: Software) -> Time:
    """The head with its loss, and the embedding. Heads of few outputs take no time worth telling."""
    layer = Layer(gpu, model, layout, software)
    group = kernels.ranks(gpu, layout.tensor, 1)
    size = layer.tokens(work.tokens) * model.hidden_size * software.element
    embedded = Time(tensor=2 * kernels.all_reduce(gpu, size, group), passes=kernels.pass_over(gpu, 6 * size))
    if not any(head.generates for head in heads_of(model)):
        return embedded
    return embedded + _vocabulary_time(layer, model, work)


def _vocabulary_time(layer: Layer, model: ModelConfig, work: Workload) -> Time:
    """A projection to the vocabulary, whose gradients are computed with the loss, a chunk of tokens at a time
    (`llmscale.model.cross_entropy`)."""
    gpu, element = layer.gpu, layer.software.element
    tokens = max(int(layer.tokens(work.length) * work.targets), 1)
    rows = model.padded_vocab(work.vocab_size) // layer.layout.tensor
    chunk = min(tokens, CHUNK_TOKENS)
    chunks = tokens / chunk
    forward, backward = layer.linear(chunk, rows, model.hidden_size)
    # Widened, shifted, exponentiated, summed and narrowed again; the weight's gradient is summed in fp32.
    logits = kernels.pass_over(gpu, chunk * rows * (2 * element + 8 * _WIDE))
    weight = kernels.pass_over(gpu, rows * model.hidden_size * (2 * _WIDE + 2 * element))
    total = Time(products=chunks * (forward + backward), passes=chunks * (logits + weight))
    if model.head_transform:
        dense = layer.linear(tokens, model.hidden_size, model.hidden_size)
        total += Time(products=sum(dense))
    return total


def software_of(model: ModelConfig, element: int, compiled: bool, layout_free: bool = True) -> Software:
    """How the trainer computes a model."""
    explicit = bool(model.attention_dropout and layout_free) or model.positions == "relative"
    return Software(fused=compiled, explicit_attention=explicit, element=element)
