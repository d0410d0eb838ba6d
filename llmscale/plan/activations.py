"""What autograd keeps of a forward pass for the backward pass, in bytes on one rank.

Each operation of `llmscale.model` keeps what its derivative needs, and one storage is counted once however many
operations keep it: a linear layer its input; LayerNorm its input, means and reciprocal deviations; fused attention
queries, keys, values, result and logarithms of the sums; GELU its input; ReLU its result; a product both factors;
dropout a mask; sums nothing. The accounting is that of Korthikanti et al. 2022, section 4, operation by operation,
so that it holds for every family and also without dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmscale.config.model import ModelConfig
from llmscale.model.attention import table_of
from llmscale.plan.layout import Layout
from llmscale.plan.workload import Workload

Saved = dict[str, int]
"""Bytes by what is kept."""
_FLAG, _INDEX, _WIDE = 1, 8, 4
_BIASED = ("relative", "alibi")
"""Positions that enter as biases of the scores, one tensor for all layers, with the mask in it."""


@dataclass(frozen=True)
class Activations:
    """Bytes that one rank keeps of one micro batch.

    The layout gives the samples of the micro batch and what is cut: tensor parallelism cuts heads and inner channels
    (Shoeybi et al. 2019), `sequence_parallel` also positions of the residual stream (Korthikanti et al. 2022), Ulysses'
    context parallelism everything by positions, attention by heads (Jacobs et al. 2023).
    """

    model: ModelConfig
    work: Workload
    layout: Layout
    element: int = 2
    """Bytes of a value in the arithmetic of the run: 2 in bf16, 4 in fp32."""
    fused_norms: bool = True
    """Whether RMSNorm is one kernel, as on CUDA; on a CPU it is taken apart and keeps one tensor more."""
    layout_free: bool = True
    """engine.dropout_layout_free: dropped attention probabilities are computed without the fused kernel."""

    def tokens(self, length: int) -> int:
        """Tokens of this rank."""
        return self.layout.micro_batch * length // self.layout.context

    # The parts of a block.

    def norm(self, length: int) -> Saved:
        """A norm's input, which is the residual stream, and its statistics."""
        tokens = self.tokens(length) // (self.layout.tensor if self.layout.sequence_parallel else 1)
        width = self.model.hidden_size
        saved = {"norm input": tokens * width * self.element}
        if self.model.norm == "layernorm":
            return saved | {"norm statistics": 2 * tokens * _WIDE}
        if not self.fused_norms:
            saved["normalised"] = tokens * width * self.element
        return saved | {"norm statistics": tokens * _WIDE}

    def residual(self, length: int) -> int:
        """The residual stream, whole."""
        return self.tokens(length) * self.model.hidden_size * self.element

    def carried(self, length: int) -> int:
        """The residual stream between blocks, as this rank holds it."""
        return self.residual(length) // (self.layout.tensor if self.layout.sequence_parallel else 1)

    def heads(self) -> tuple[int, int]:
        """Query heads and key heads of this rank's tensor-parallel part."""
        return table_of(self.model).local_heads(self.layout.tensor)

    def attention(self, length: int, memory: int, flags: int, cross: bool) -> Saved:
        """Attention from its projections' results to its output projection's input.

        Args:
            length: tokens that ask, of a sample.
            memory: tokens that are asked.
            flags: elements of the boolean mask that this layer is given; 0: none, or biases, which all layers share.
            cross: whether another stack's result is asked.
        """
        model, layout = self.model, self.layout
        table, rate = table_of(model, cross), model.attention_dropout
        heads, shared = table.local_heads(layout.tensor)
        queries = self.tokens(length) * heads * table.key_channels * self.element
        result = self.tokens(length) * heads * table.value_channels * self.element
        keys = self.tokens(memory) * shared * (table.key_channels + table.value_channels) * self.element
        pairs = layout.micro_batch * heads // layout.context * length * memory
        saved: Saved = {}
        for norm in table.norms:
            each = norm.elements(layout.tensor) * self.element * (1 if self.fused_norms else 2) + _WIDE
            add(saved, {"norms of attention": self.tokens(length) * norm.vectors(layout.tensor) * each})
        inner = sum(row.local(layout.tensor)[1] for row in table.projections if row.inner)
        if inner:
            saved["inner projections' inputs"] = self.tokens(length) * inner * self.element
        if rate and self.layout_free:
            repeated = keys * heads // shared
            saved |= {"queries": queries, "keys and values": repeated, "probabilities": pairs * (4 + self.element)}
            saved["dropped probabilities"] = pairs * _FLAG
            own = length * memory if model.positions not in _BIASED and not cross and self._causal else 0
            saved["mask"] = (flags or own) * _FLAG
        elif model.positions == "relative" and not cross:
            # No fused kernel of torch gives the biases their gradient on every device.
            saved |= {"queries": queries, "keys and values": keys, "probabilities": pairs * self.element}
        else:
            saved |= {"queries": queries, "keys and values": keys, "attention result": result}
            saved["attention sums"] = pairs // memory * _WIDE
            saved["mask"] = flags * self.element  # Kernels take biases: 0 or minus infinity.
            if layout.context == 1:
                return saved  # The output projection's input is the kept result.
        return saved | {"output projection's input": result}

    @property
    def _causal(self) -> bool:
        return self.model.architecture != "encoder"

    def feed_forward(self, layer: int, length: int) -> Saved:
        """A dense feed-forward layer between its two projections."""
        inner = self.tokens(length) * self.model.dense_channels(layer) // self.layout.tensor
        drops = bool(self.model.dropout) and self.model.dropout_scheme == "t5"
        saved = {"feed-forward": inner * self.element * _inner_tensors(self.model)}
        if drops:
            # The product of a gated layer is then not kept, ReLU's result is beside what is left of it.
            more = 1 if self.model.activation == "relu" else 0
            saved["feed-forward"] += inner * self.element * more
            saved["dropped channels"] = inner * _FLAG
        return saved

    def experts(self, length: int) -> Saved:
        """Router and experts: each token goes through `per_token` of them."""
        settings, model = self.model.experts, self.model
        assert settings is not None
        tokens = self.tokens(length)
        routed = tokens * settings.per_token
        inner = routed * model.expert_channels // self.layout.tensor * self.element
        wide = 3 if settings.z_weight or settings.balance_weight else 2
        router = tokens * settings.count * _WIDE * wide + routed * (2 * _WIDE + 3 * _INDEX)
        saved = {
            "experts' inputs": routed * model.hidden_size * self.element,
            "experts": inner * _inner_tensors(model),
            "experts' results": routed * model.hidden_size * self.element,
            "router": router,
        }
        if self.layout.expert > 1:
            saved["exchanged tokens"] = routed * model.hidden_size * self.element
        return saved

    def block(self, layer: int, length: int, memory: int = 0, *, causal: bool = True) -> Saved:
        """Everything kept of one layer when nothing is recomputed; with `memory`, one with cross-attention."""
        model = self.model
        saved: Saved = {}
        add(saved, self.attention(length, length, self.flags(layer, length, causal), cross=False))
        whole = self.residual(length)
        sublayers = 2 + bool(memory)
        # Two norms of the same input keep it once.
        beside = model.parallel_residual and not model.shared_norm and (model.first_norm or layer > 0)
        for _ in range(model.block_norms(layer, bool(memory)) - beside):
            add(saved, self.norm(length))
        if beside:
            add(saved, {"norm statistics": self.norm(length)["norm statistics"]})
        inputs = sublayers - (model.parallel_residual and model.shared_norm)
        add(saved, {"projections' inputs": inputs * whole})
        if model.query_layer and layer == model.layers - 1:
            add(saved, {"projections' inputs": whole})
        if memory:
            flags = self.layout.micro_batch * memory if self.work.masked else 0
            add(saved, self.attention(length, memory, flags, cross=True))
        if model.has_experts(layer):
            add(saved, self.experts(length))
        if model.dense_channels(layer):
            add(saved, self.feed_forward(layer, length))
        if model.dropout:
            share = self.carried(length) // self.element
            add(saved, {"dropped values": sublayers * share * _FLAG})
        return saved

    def flags(self, layer: int, length: int, causal: bool) -> int:
        """Elements of a layer's boolean mask; 0 where the kernel's own causality does, or biases stand for it."""
        model = self.model
        windowed = model.attention_kind(layer) == "local" and model.window is not None
        reach = (model.window or 0) if causal else (model.window or 0) // 2 + 1
        if model.positions in _BIASED or not (self.work.masked or (windowed and length > reach)):
            return 0
        return length * length * (self.layout.micro_batch if self.work.masked else 1)

    def kept(self, layer: int, length: int, memory: int = 0) -> Saved:
        """What `engine.activation_checkpointing: selective` keeps of one layer besides its input: results of
        products with weights, and of fused attention."""
        model = self.model
        table, tokens = table_of(model), self.tokens(length)
        heads, _ = self.heads()
        fused = not (model.attention_dropout and self.layout_free) and model.positions != "relative"
        into = sum(row.local(self.layout.tensor)[0] for row in table.projections if row.cut != "row")
        projected = tokens * into * self.element
        saved = {"queries": projected, "projections' results": 2 * self.residual(length)}
        result = tokens * heads * (table.value_channels * self.element + _WIDE)
        if fused:
            saved["attention result"] = result
        if memory:
            for row in table_of(model, cross=True).projections:
                if row.cut != "row":
                    read = self.tokens(memory) if row.name in ("key", "value") else tokens
                    saved["queries"] += read * row.local(self.layout.tensor)[0] * self.element
            saved["projections' results"] += self.residual(length)
            cross_fused = not (model.attention_dropout and self.layout_free)
            saved["attention result"] = saved.get("attention result", 0) + (result if cross_fused else 0)
        wide = (2 if model.gated else 1) * self.element // self.layout.tensor
        if model.has_experts(layer):
            assert model.experts is not None
            routed = tokens * model.experts.per_token
            saved["experts"] = routed * (model.expert_channels * wide + model.hidden_size * self.element)
            saved["projections' results"] -= self.residual(length)
            saved["router"] = tokens * model.experts.count * self.element
        if dense := model.dense_channels(layer):
            saved["feed-forward"] = tokens * dense * wide
        return saved


def add(total: Saved, more: Saved) -> None:
    """total += more."""
    for name, size in more.items():
        total[name] = total.get(name, 0) + size


def _inner_tensors(model: ModelConfig) -> int:
    """Tensors of a feed-forward layer's inner width that its activation and second projection keep."""
    if model.gated:
        return 4  # gate, activated gate, up, and their product
    return 1 if model.activation == "relu" else 2
