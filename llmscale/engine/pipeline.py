"""The training engine of a pipeline: each rank has one stage, and DeepSpeed sends hidden states between them.

Every rank of a pipeline has the same micro batches, so that nothing but hidden states and their gradients travels.
Written against DeepSpeed 0.19.8, as `llmscale.engine.deepspeed.shims` is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.batch import Batch
from llmscale.engine.deepspeed import shims, zero_state
from llmscale.engine.engine import Engine, ObjectiveModule, over_positions
from llmscale.engine.fingerprints import Fingerprints, first_difference, gradients
from llmscale.engine.settings import EngineSettings
from llmscale.model import Transformer
from llmscale.objectives.loss import Loss
from llmscale.parallel.grid import REPLICAS, RankGrid
from llmscale.parallel.init import Weights
from llmscale.parallel.pipeline import shared_by_stages, users


def make_engine(
    model: Transformer,
    loss: Loss,
    config: EngineSettings,
    grid: RankGrid,
    device: torch.device,
    weights: Weights | None = None,
) -> Engine:
    """The engine for this rank's part of a model; the arguments are those of `Engine`."""
    return (PipelineEngine if grid.pipeline > 1 else Engine)(model, loss, config, grid, device, weights)


class _Anchored(torch.autograd.Function):
    """The identity, with a gradient of 0 for a second argument."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return gradient, gradient.new_zeros(1)


class Stage(nn.Module):
    """A stage with its part of the loss: the one layer that DeepSpeed's pipeline has of a rank."""

    def __init__(self, objective: ObjectiveModule) -> None:
        super().__init__()
        self.objective = objective
        self._loss = objective.loss
        self._micro_batches: Iterator[Batch] = iter(())
        self._scale: Tensor | None = None
        self.sums: list[Tensor] = []
        """(terms,) of each micro batch since `expect`, on the last stage."""
        self.scores: list[Tensor] = []
        """(2, B, K) of each micro batch since `expect` that asks for scores, on the last stage."""
        self.anchor: nn.Parameter | None = None
        """On a stage of which nothing is trained: a 0 that is, since DeepSpeed knows no stage without an optimizer or
        without a backward pass."""

    def expect(self, micro_batches: list[Batch], scale: Tensor | None = None) -> None:
        """Say what comes next: on every stage the forward passes come in the order of the micro batches.

        `scale`: (terms,) factors of the sums, which make the loss of them; None: there is no backward pass.
        """
        self._micro_batches = iter(micro_batches)
        self._scale = scale
        self.sums, self.scores = [], []

    def forward(self, hidden: Tensor) -> Tensor:
        """What the stage before made of a micro batch (the first stage gets anything), to what this one makes of it,
        (B, T, hidden_size); on the last stage to the loss."""
        value = self._value(hidden)
        return value if self.anchor is None else _Anchored.apply(value, self.anchor)

    def _value(self, hidden: Tensor) -> Tensor:
        batch = next(self._micro_batches)
        model, loss = self.objective.model, self._loss
        run: Any = model if model.begins else partial(model, hidden=hidden)
        dropout = self.objective.dropout(batch)
        output = loss.output(run, batch, dropout)
        if not model.ends:
            return output.hidden
        if batch.scored_places is not None:
            self.scores.append(self.objective.scores(model, output.hidden, batch))
            return output.hidden.new_zeros(())
        terms = torch.stack(loss.sums(model, output, batch, dropout))
        self.sums.append(terms.detach())
        return (terms if self._scale is None else terms * self._scale).sum()


class Shared:
    """A parameter that several stages use: the gradients of all go to its owner, whose new values go to all."""

    def __init__(self, parameter: nn.Parameter, group: Any, owner: int) -> None:
        self.parameter = parameter
        self.group = group
        """Of the ranks that use it."""
        self.owner = owner
        self.owned = owner == dist.get_rank()
        self._gradient: Tensor | None = None

    def start(self) -> None:
        """Take the gradients from now on; call it once the parameter has its dtype."""
        if not self.owned and self.parameter.requires_grad:
            self.parameter.register_post_accumulate_grad_hook(self._take)

    def _take(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        # In fp32 over the micro batches, whatever the passes compute in.
        found, parameter.grad = parameter.grad.float(), None
        self._gradient = found if self._gradient is None else self._gradient.add_(found)

    @torch.no_grad()
    def collect(self, zero: Any) -> None:
        """Add what the others found to the owner's gradient, in fp32. `zero`: DeepSpeed's optimizer."""
        gradient = zero.get_gradient_for_reduction(self.parameter) if self.owned else self._gradient
        assert gradient is not None
        total = gradient.float()
        dist.reduce(total, dst=self.owner, group=self.group)
        if self.owned:
            gradient.copy_(total)
        self._gradient = None

    @torch.no_grad()
    def spread(self) -> None:
        """Send the owner's values to the others."""
        dist.broadcast(self.parameter.data, src=self.owner, group=self.group)


class PipelineEngine(Engine):
    """One stage of a model that trains: the interface of `Engine`, and the same gradients.

    What several stages use is updated by the first of them (see `Shared`).
    """

    def __init__(
        self,
        model: Transformer,
        loss: Loss,
        config: EngineSettings,
        grid: RankGrid,
        device: torch.device,
        weights: Weights | None = None,
    ) -> None:
        self._shared: list[Shared] = []
        self._shape: torch.Size | None = None
        self._anchor: nn.Parameter | None = None
        super().__init__(model, loss, config, grid, device, weights)
        counts = torch.tensor([self.parameters, self.trained_parameters])
        dist.all_reduce(counts, group=grid.group("pipeline"))
        self.parameters, self.trained_parameters = counts.tolist()

    def _owned(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        grid, shared, named = self.grid, shared_by_stages(self.config.model, self.grid.pipeline), []
        for name, parameter in model.named_parameters():
            owned = True
            if name in shared:
                members = users(grid, shared[name])
                self._shared.append(Shared(parameter, grid.group_of(members), owner=members[0]))
                owned = self._shared[-1].owned
            if owned:
                named.append((name, parameter))
        return named

    def _updated(self, module: ObjectiveModule) -> list[tuple[str, nn.Parameter]]:
        if any(parameter.requires_grad for _, parameter in self.named):
            return self.named
        self._anchor = nn.Parameter(torch.zeros(1, dtype=self.dtype, device=self.device))
        return [("anchor", self._anchor)]

    def _start(
        self, deepspeed: Any, module: ObjectiveModule, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
    ) -> Any:
        from deepspeed.runtime.pipe.schedule import ReduceTiedGrads
        from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

        grid = self.grid
        self._stage = Stage(module)
        self._stage.anchor = self._anchor
        deepspeed.init_distributed()
        # The layers are shared out already: each rank has one of as many as there are stages.
        layers = [self._stage if rank == grid.rank else _elsewhere for rank in grid.ranks("pipeline")]
        topology = PipeModelDataParallelTopology(num_pp=grid.pipeline, num_dp=grid.data, num_mp=grid.tensor)
        pipeline = deepspeed.PipelineModule(layers=layers, topology=topology, partition_method="uniform")
        engine, *_ = deepspeed.initialize(model=pipeline, optimizer=optimizer, config=_pipeline_settings(settings))
        _require_same_groups(engine.grid, grid)
        for shared in self._shared:
            shared.start()
        engine._INSTRUCTION_MAP = {**engine._INSTRUCTION_MAP, ReduceTiedGrads: self._collect_gradients}
        shims.norm_over_stages(engine)
        return engine

    def _update(self, micro_batches: list[Batch], scale: Tensor) -> Tensor:
        self._expect(micro_batches, scale)
        # DeepSpeed's gradient accumulation stays 1, so that it averages over nothing.
        self._engine.micro_batches = len(micro_batches)
        self._engine.train_batch(data_iter=itertools.repeat((_NOTHING, _NOTHING)))
        self._spread_values()
        sums = self._stage.sums
        return torch.stack(sums).double().sum(0) if sums else torch.zeros(len(scale), dtype=torch.float64)

    @torch.no_grad()
    def measure(self, batch: Batch) -> list[float]:
        self._evaluate(batch)
        totals = [sum(float(terms[i]) for terms in self._stage.sums) for i in self._measured]
        return [total * self.grid.is_loss_reporter for total in totals]

    def computed_twice(self, batch: Batch) -> tuple[int, str] | None:
        """As `Engine.computed_twice`. A stage computes both times from the same hidden states and the same gradient,
        which its neighbours send once: where its results differ, it is at fault itself."""
        self._engine.eval()
        self._stage.expect([batch.to(self.device)] * 2)
        stages, stage = self.grid.ranks("pipeline"), self.grid.coordinate("pipeline")
        hidden = _received(stages[stage - 1], self.device) if stage else None
        noted, passes = [Fingerprints(), Fingerprints()], []
        for found in noted:
            with self._watched(found):
                given = None if hidden is None else hidden.clone().requires_grad_()
                found.add("what the stage before gave", given)
                value = self._stage(given)
                found.add("what the stage gives", value)
                passes.append((given, value))
        gradient = None
        if stage + 1 < len(stages):
            _send(passes[0][1], stages[stage + 1])
            gradient = _received(stages[stage + 1], self.device)
        returned = []
        for found, (given, value) in zip(noted, passes, strict=True):
            with self._watched(found):
                returned.append(gradients(value, self._objective, given, gradient))
        if stage:
            _send(returned[0], stages[stage - 1])
        return first_difference(*noted)

    @property
    def _objective(self) -> ObjectiveModule:
        return self._stage.objective

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        self._evaluate(batch)
        assert batch.scored_places is not None
        if not self._stage.scores:
            return torch.zeros(2, *batch.scored_places.shape)
        return over_positions(torch.cat(self._stage.scores, dim=1), self.grid).cpu()

    def _evaluate(self, batch: Batch) -> None:
        """A forward pass through all stages."""
        stages, size = self.grid.pipeline, batch.size
        # In parts, so that the stages work at the same time.
        parts = batch.split(size if size % stages else size // stages)
        self._expect(parts)
        self._engine.eval_batch(
            itertools.repeat((_NOTHING, _NOTHING)), reduce_output=None, bcast_loss=False, num_micro_batches=len(parts)
        )

    def load_state(self, read: zero_state.SliceReader, counters: dict[str, Any]) -> None:
        super().load_state(read, counters)
        self._spread_values()

    def _expect(self, micro_batches: list[Batch], scale: Tensor | None = None) -> None:
        self._stage.expect([batch.to(self.device) for batch in micro_batches], scale)
        shape = micro_batches[0].inputs.shape
        if shape != self._shape:
            # DeepSpeed tells the next stage the shape of the first micro batch only.
            self._engine.reset_activation_shape()
        self._shape = shape

    def _collect_gradients(self, engine: Any) -> None:
        """In place of DeepSpeed's own sum over stages: before it averages over replicas."""
        for shared in self._shared:
            if shared.parameter.requires_grad:
                shared.collect(engine.optimizer)

    def _spread_values(self) -> None:
        for shared in self._shared:
            shared.spread()


_NOTHING = torch.zeros(1, dtype=torch.int64)
"""What DeepSpeed takes for samples and labels: the stages have their micro batches already."""


def _elsewhere(hidden: Tensor) -> Tensor:
    raise AssertionError("another stage's layers")


def _send(value: Tensor, rank: int) -> None:
    """Send a tensor of three dimensions, of whatever size and dtype, to a rank that calls `_received`."""
    kind = torch.tensor([_DTYPES.index(value.dtype), *value.shape], device=value.device)
    dist.send(kind, rank)
    dist.send(value.detach().contiguous(), rank)


def _received(rank: int, device: torch.device) -> Tensor:
    """What a rank has sent with `_send`."""
    kind = torch.empty(4, dtype=torch.int64, device=device)
    dist.recv(kind, rank)
    dtype, *shape = kind.tolist()
    value = torch.empty(shape, dtype=_DTYPES[dtype], device=device)
    dist.recv(value, rank)
    return value


_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _pipeline_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        "gradient_accumulation_steps": 1,
        # Tensor-parallel ranks send what they have: the same, or each its own positions, which is less already.
        "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        # Gradients are reduced after the last micro batch, by the schedule and not by hooks.
        "zero_optimization": {**settings["zero_optimization"], "overlap_comm": False, "contiguous_gradients": False},
    }


def _require_same_groups(theirs: Any, grid: RankGrid) -> None:
    """DeepSpeed lays the ranks out by its own topology: every group must be that of our grid."""
    pairs = {
        "pipeline": (theirs.get_pipe_parallel_group(), grid.ranks("pipeline")),
        "data": (theirs.get_data_parallel_group(), grid.ranks(*REPLICAS)),
        "tensor": (theirs.get_slice_parallel_group(), grid.ranks("tensor")),
        "model": (theirs.get_model_parallel_group(), grid.ranks("pipeline", "tensor")),
    }
    for axis, (group, ranks) in pairs.items():
        found = dist.get_process_group_ranks(group)
        assert found == ranks, f"DeepSpeed's {axis} group of rank {grid.rank} is {found}, not {ranks}"
