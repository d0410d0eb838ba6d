"""How long a step takes: layers, pipeline, communication of data parallelism, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmscale.config.model import ModelConfig
from llmscale.parallel.plans import stage_layers
from llmscale.plan import kernels
from llmscale.plan.blocks import Layer, Software, Time, head_time
from llmscale.plan.flops import Flops, flops
from llmscale.plan.hardware import Hardware
from llmscale.plan.layout import Layout
from llmscale.plan.parameters import Counts, layer_kinds, parameters
from llmscale.plan.workload import Workload

OPTIMIZER_BYTES = 44
"""Traffic of an update for each element of the shard, with AdamW, counted by hand: gradient read for the norm and
widened (2 + 4 + 4), weight, moments and gradient read (16), weight and moments written (12), and the weight narrowed
(4 + 2)."""


@dataclass(frozen=True)
class Step:
    """Seconds of a step, by cause; they add up to `seconds`."""

    products: float
    attention: float
    passes: float
    recompute: float
    tensor: float
    """Communication within layers: tensor, context and expert parallel."""
    data: float
    """Communication of gradients and weights that computing does not hide."""
    bubble: float
    """Waiting for the pipeline to fill and to empty, and for its slowest stage."""
    sending: float
    """Between pipeline stages."""
    optimizer: float
    model_flops: float
    """Operations of the whole step, all ranks together, that the model needs."""
    hardware_flops: float
    """The same with what is recomputed."""
    ranks: int
    peak: float
    """Operations a second that one rank's data sheet promises."""

    @property
    def seconds(self) -> float:
        return (
            self.products
            + self.attention
            + self.passes
            + self.recompute
            + self.tensor
            + self.data
            + self.bubble
            + self.sending
            + self.optimizer
        )

    @property
    def tflops(self) -> float:
        """Model TFLOP/s of one rank."""
        return self.model_flops / self.seconds / self.ranks / 1e12

    @property
    def hardware_tflops(self) -> float:
        """TFLOP/s of one rank, what is recomputed included, as Narayanan et al. 2021 report."""
        return self.hardware_flops / self.seconds / self.ranks / 1e12

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation (PaLM, appendix B)."""
        return self.tflops * 1e12 / self.peak


@dataclass
class Forecaster:
    """Step times of one config on one kind of GPU. Layers that several layouts share are computed once."""

    gpu: Hardware
    model: ModelConfig
    work: Workload
    software: Software
    overlapped: bool = True
    """Whether the gradients' reduction runs beside the backward pass (`overlap_comm`)."""
    scatter_gather: bool = False
    """Whether tensor-parallel ranks share what is sent between stages (Narayanan et al. 2021, section 4.1)."""
    _layers: dict[tuple[object, ...], tuple[Time, Time]] = field(default_factory=dict)
    _heads: dict[tuple[object, ...], Time] = field(default_factory=dict)
    _counts: dict[tuple[int, ...], Counts] = field(default_factory=dict)
    _flops: Flops | None = None

    def step(self, layout: Layout, samples: int) -> Step:
        """A step of `samples` samples over all ranks at this layout."""
        first = self._stage(layout, 0)
        last = self._stage(layout, layout.pipeline - 1) if layout.pipeline > 1 else first
        middle = self._stage(layout, layout.pipeline // 2) if layout.pipeline > 2 else first
        slowest = max((first, middle, last), key=_total)
        count = layout.accumulation
        forward, backward, again = slowest
        mean = (_total(first) + _total(last) + (layout.pipeline - 2) * _total(middle)) / max(layout.pipeline, 1)
        fill = (layout.pipeline - 1) / layout.interleave * mean if layout.pipeline > 1 else 0.0
        sending = self._sending(layout)
        data = self._data(layout, forward, backward + again)
        both = forward + backward
        numbers = self._numbers()
        wanted = samples * numbers.model
        fused = not self.software.explicit_attention
        return Step(
            products=count * both.products,
            attention=count * both.attention,
            passes=count * both.passes + self._accumulation(layout),
            recompute=count * (again.total - again.tensor),
            tensor=count * (both.tensor + again.tensor),
            data=data,
            bubble=fill,
            sending=sending,
            optimizer=self._optimizer(layout),
            model_flops=wanted,
            hardware_flops=wanted + samples * numbers.recomputed(layout.activation_checkpointing, fused),
            ranks=layout.world_size,
            peak=self.gpu.peak(self.software.element),
        )

    def _numbers(self) -> Flops:
        if self._flops is None:
            self._flops = flops(self.model, self.work)
        return self._flops

    def _stage(self, layout: Layout, stage: int) -> tuple[Time, Time, Time]:
        """(forward, backward, recomputation) of one micro batch on one stage, head and embedding within backward."""
        work, model = self.work, self.model
        causal = model.architecture != "encoder"
        forward, backward = Time(), Time()
        again = Time()
        stacks = [(stage_layers(model.layers, layout.pipeline)[stage], work.length, work.memory, causal)]
        if work.memory:
            stacks.append((range(model.encoder_layer_count), work.memory, 0, False))
        for layers, length, memory, own in stacks:
            for kind, times in layer_kinds(model, layers):
                there, back = self._layer(layout, kind, length, memory, own)
                forward, backward = forward + there.times(times), backward + back.times(times)
                again += self._again(layout, there).times(times)
        if stage == layout.pipeline - 1:
            key = (layout.tensor, layout.context, layout.micro_batch)
            if key not in self._heads:
                self._heads[key] = head_time(self.gpu, model, work, layout, self.software)
            backward += self._heads[key]
        return forward, backward, again

    def _again(self, layout: Layout, forward: Time) -> Time:
        """What recomputation repeats of a layer's forward pass; `selective` keeps products and fused attention."""
        if layout.activation_checkpointing == "none":
            return Time()
        if layout.activation_checkpointing == "block":
            return forward
        attention = forward.attention if self.software.explicit_attention else 0.0
        return Time(attention=attention, passes=forward.passes, tensor=forward.tensor)

    def _layer(self, layout: Layout, layer: int, length: int, memory: int, causal: bool) -> tuple[Time, Time]:
        model = self.model
        key = (
            model.has_experts(layer),
            model.attention_kind(layer),
            layer == 0,
            length,
            causal,
            layout.tensor,
            layout.sequence_parallel,
            layout.context,
            layout.expert,
            layout.micro_batch,
        )
        if key not in self._layers:
            timed = Layer(self.gpu, model, layout, self.software)
            self._layers[key] = timed.forward_and_backward(layer, length, memory, causal, self.work.masked)
        return self._layers[key]

    def _elements(self, layout: Layout) -> Counts:
        """Of the first stage."""
        key = (layout.tensor, layout.pipeline, layout.expert)
        if key not in self._counts:
            self._counts[key] = parameters(
                self.model,
                self.work.vocab_size,
                tensor=layout.tensor,
                pipeline=layout.pipeline,
                stage=0,
                expert=layout.expert,
            )
        return self._counts[key]

    def _data(self, layout: Layout, forward: Time, backward: Time) -> float:
        """Communication of ZeRO that is not hidden (Rajbhandari et al. 2020, section 7): gradients are reduced, once a
        step at stage 1 and for every micro batch from stage 2 on; weights are gathered after the update, at stage 3
        before the forward and again before the backward pass. At stage 3 the next layer's weights come while one
        computes, the gradients of a layer go while the next computes."""
        groups, gpu = self._groups(layout), self.gpu
        reduced = sum(kernels.gather(gpu, elements * self.software.gradient, group) for elements, group in groups)
        gathered = sum(kernels.gather(gpu, elements * self.software.element, group) for elements, group in groups)
        if not reduced:
            return 0.0
        count, layers = layout.accumulation, max(self.model.layers, 1)
        if layout.zero_stage == 3:
            shown = max(gathered - forward.total, 0.0) + max(gathered + reduced - backward.total, 0.0)
            return count * shown + (gathered + reduced) / layers
        beside = backward.total if self.overlapped and layout.pipeline == 1 else 0.0
        # The last bucket is full only when the backward pass ends.
        tail = reduced / layers if beside else 0.0
        return (count if layout.zero_stage == 2 else 1) * max(reduced - beside, tail) + gathered

    def _groups(self, layout: Layout) -> list[tuple[int, kernels.Ranks]]:
        """(elements, ranks that hold the same ones) of dense parameters and of experts."""
        counts = self._elements(layout)
        experts = counts["experts"]
        stride = layout.tensor
        dense = kernels.ranks(self.gpu, layout.replicas, stride)
        groups = [(sum(counts.values()) - experts, dense)]
        if experts:
            groups.append((experts, kernels.ranks(self.gpu, layout.expert_replicas, stride * layout.expert)))
        return groups

    def _sending(self, layout: Layout) -> float:
        """Activations and their gradients between stages: each micro batch enters and leaves each chunk of a stage."""
        if layout.pipeline == 1:
            return 0.0
        size = layout.micro_batch * self.work.length // layout.context * self.model.hidden_size * self.software.element
        between = layout.replicas * layout.tensor >= self.gpu.gpus_per_node
        group = kernels.ranks(self.gpu, layout.tensor, 1)
        if self.scatter_gather:
            once = kernels.send(self.gpu, size / layout.tensor, between) + kernels.gather(self.gpu, size, group)
        else:
            once = kernels.send(self.gpu, size, between)
        transfers = layout.accumulation * layout.interleave + layout.pipeline - 1
        return 2 * transfers * once

    def _accumulation(self, layout: Layout) -> float:
        """Adding each further micro batch's gradients to those before it."""
        elements = sum(self._elements(layout).values())
        element, gradient = self.software.element, self.software.gradient
        widened = element + gradient if gradient != element else 0
        return (layout.accumulation - 1) * kernels.pass_over(self.gpu, (3 * gradient + widened) * elements)

    def _optimizer(self, layout: Layout) -> float:
        counts = self._elements(layout)
        experts = counts["experts"]
        dense = sum(counts.values()) - experts
        own = dense / layout.replicas + experts / layout.expert_replicas if layout.zero_stage else dense + experts
        return kernels.pass_over(self.gpu, OPTIMIZER_BYTES * own)


def _total(times: tuple[Time, Time, Time]) -> float:
    return sum(part.total for part in times)
