"""The training engine: one DeepSpeed engine, driven by our own step counter, schedule and loss normalisation."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.batch import Batch, with_label
from llmscale.config.training import TrainConfig, micro_batches
from llmscale.engine.activation_checkpointing import apply_activation_checkpointing
from llmscale.engine.compiling import compile_blocks, compiler_on_demand
from llmscale.engine.cutting import Cutting
from llmscale.engine.deepspeed import shims, zero_state
from llmscale.engine.deepspeed.experts import experts_of_deepspeed, mark_experts
from llmscale.engine.deepspeed.settings import deepspeed_config
from llmscale.engine.deepspeed.weights import held, partition, place
from llmscale.engine.features import Features
from llmscale.engine.fingerprints import Fingerprints, fingerprints_of, first_difference, gradients
from llmscale.engine.forward_timer import ForwardTimer
from llmscale.engine.optimizers import build_optimizer, set_learning_rate
from llmscale.engine.schedule import learning_rate
from llmscale.engine.settings import EngineSettings
from llmscale.engine.whole_batch import with_whole_batch
from llmscale.finetune.freezing import freeze
from llmscale.model import Dropout
from llmscale.model.block import Block
from llmscale.model.experts import filled_experts
from llmscale.objectives.loss import Loss
from llmscale.objectives.scores import ROWS, own_places, token_scores
from llmscale.parallel.context import own_targets
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.init import Weights
from llmscale.parallel.parameters import slice_of
from llmscale.parallel.tensor import dropout_part
from llmscale.slices.fragment import Fragment

_LOGGER = logging.getLogger("llmscale")


class ObjectiveModule(nn.Module):
    """The model with its loss, as the one module that DeepSpeed wraps."""

    def __init__(self, model: nn.Module, loss: Loss, config: EngineSettings, grid: RankGrid) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        head, lora = config.model.head, config.model.lora
        rates = (config.model.dropout, config.model.attention_dropout, head and head.dropout, lora and lora.dropout)
        self._drops = any(rates)
        self._seed, self._layout_free = config.seed, config.engine.dropout_layout_free
        self._part = dropout_part(grid, config.parallel.sequence_parallel)
        self._grid = grid
        self.experts = experts_of_deepspeed(grid)

    def forward(
        self, batch: Batch, represent: bool = False, condense: bool = False, predict: bool = False
    ) -> torch.Tensor:
        """The sum of each term of the loss over the batch, (terms,) in fp32; with dropout in training. Of a batch that
        asks for scores those, (2, B, K). With `represent` what the losses of other samples take of each, (B, ...); with
        `condense` all that the head reads of each; with `predict` the head's logits."""
        if predict:
            return self.loss.predict(self.model, batch)
        if represent:
            return self.loss.represent(self.model, batch, self.dropout(batch))
        if condense:
            return self.loss.condense(self.model, batch)
        if batch.scored_places is not None:
            with filled_experts(self.model, ROWS):
                return self.scores(self.model, self.loss.output(self.model, batch).hidden, batch)
        return self.loss(self.model, batch, self.dropout(batch), own_targets(batch, self.loss.heads, self._grid))

    def scores(self, model: Any, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """`token_scores` (2, B, K) of the positions that this rank has; 0 of those of other ranks."""
        assert batch.scored_tokens is not None
        grid = self._grid
        places = own_places(batch, grid.coordinate("context"), grid.context)
        return token_scores(model, hidden, places, batch.scored_tokens)

    def dropout(self, batch: Batch) -> Dropout | None:
        """What is dropped of a batch: nothing outside of training."""
        if not (self._drops and self.training):
            return None
        return Dropout.of(self._seed, batch.sample_ids, self._layout_free, self._part)


class Engine:
    """A model that trains: forward, backward and update through DeepSpeed ZeRO.

    Gradients are those of the sum over the loss's terms of (sum over the global batch) / (count over the global
    batch), at any number of ranks and micro batches.
    """

    features: Features | None = None
    """What a frozen body has made of rows, where it need not be computed at every step."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: EngineSettings,
        grid: RankGrid,
        device: torch.device,
        weights: Weights | None = None,
    ) -> None:
        """Start; collective.

        Args:
            model: this rank's part, hollow (`llmscale.parallel.init.build_hollow`) or with its values.
            weights: its values, read one tensor at a time, at ZeRO 3 only this rank's part of it; None: those that the
                model has.
        """
        self.config = config
        self.grid = grid
        self.device = device
        # Beside the loss: the names of its terms, and of how many targets each is the sum in a batch.
        self._loss, self.terms, self.counts = loss, loss.terms, loss.counts
        self.cut = Cutting(config, loss.heads[0])
        """This rank's samples of a step to the micro batches of `train_step`."""
        self.whole_batch = loss.whole_batch
        """Whether what `measure` gives depends on which samples are in one batch."""
        self.dtype = resolve_dtype(config.engine.dtype, device)
        self._measured = [0, *range(len(loss.terms), len(loss.terms) + len(loss.measures))]
        self.measures = {name: name in loss.heads[0].higher_is_better for name in loss.measures}
        """Names of what `measure` gives after the loss, and whether more is better."""
        training = freeze(model, config.model, config.finetune)
        self.named = self._owned(model)
        """The parameters whose state this rank has, or shares with others, by name; frozen ones too."""
        self.parameters, self.trained_parameters = _counted(self.named)
        """Of the whole model, not of this rank's part: of all that there are, and of those that are not frozen."""
        self.forward_timer = ForwardTimer(device)
        self.draws = config.model.attention_dropout > 0 and not config.engine.dropout_layout_free
        if self.draws:
            _LOGGER.warning(
                "engine.dropout_layout_free is false and model.attention_dropout is %s: losses depend on ranks and"
                " micro batch",
                config.model.attention_dropout,
            )
        apply_activation_checkpointing(model, config.engine.activation_checkpointing, self.draws)
        if config.engine.compile:
            compile_blocks(model)
        deepspeed = shims.import_deepspeed(device)
        mark_experts(model, grid)
        # Sees shapes, which are gone once ZeRO 3 has cut the weights.
        module = ObjectiveModule(model, loss, config, grid)
        optimizer = build_optimizer(self._updated(module), config.optimizer, self.dtype, training.factor)
        settings = deepspeed_config(config, grid, device, self.dtype, sum(part.numel() for _, part in self.named))
        # Also what is trained elsewhere.
        everything = list(model.named_parameters())
        values = held(everything) if weights is None else weights
        if config.engine.compile and config.engine.zero_stage == 3:
            # A layer's weights are brought together before it runs, and not one after the other inside of it.
            deepspeed.utils.set_z3_leaf_modules(model, [Block])
        with _stdout_to_log():
            if config.engine.zero_stage == 3:
                partition(everything, values, device, self.dtype, grid, settings)
            else:
                place(everything, values, device, self.dtype)
            with shims.one_kind_of_optimizer(deepspeed), compiler_on_demand():
                self._engine = self._start(deepspeed, module, optimizer, settings)
        if not isinstance(self._engine, deepspeed.DeepSpeedEngine):
            raise AssertionError(f"deepspeed.initialize gave {type(self._engine)}, not an engine")
        shims.share_masters(self._engine)
        if self.dtype != torch.float32:
            # DeepSpeed made them of weights that were rounded already.
            zero_state.fill_masters(self._engine, self.named, values)
        zero_state.bind_optimizer(self._engine, self.named)
        zero_state.create_optimizer_state(self._engine, config.optimizer.name)
        shims.skip_at_the_smallest_scale(self._engine)
        shims.save_passes_over_gradients(self._engine)

    @property
    def shared(self) -> str | None:
        """As `Loss.shared`."""
        return self._loss.shared

    @property
    def per_token(self) -> bool:
        """Whether the loss is one of each token of a text."""
        return self._loss.heads[0].per_token

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model, which would keep both and their process groups for ever."""
        self._engine.destroy()

    def _owned(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """`named`, of this rank's part of the model."""
        return list(model.named_parameters())

    def _updated(self, module: ObjectiveModule) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer gets: `named`, and whatever else it needs."""
        return self.named

    def _start(
        self, deepspeed: Any, module: ObjectiveModule, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
    ) -> Any:
        """DeepSpeed's engine around the model."""
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, mpu=self.grid, config=settings)
        return engine

    @torch.no_grad()
    def condense(self, batch: Batch) -> torch.Tensor:
        """All that the head reads of each row, (B, channels) or (B, T, channels); where ranks share parameters they
        must call it together."""
        with self._passes():
            return self._engine.module(batch, condense=True)

    def train_step(self, micro_batches: list[Batch], step: int, counts: list[float]) -> tuple[list[float], float]:
        """One update from this rank's micro batches of the global batch.

        Args:
            micro_batches: those of `cut`, on the CPU or already on the device.
            step: 0-based number of the step; decides the learning rate.
            counts: what each term of the loss is divided by, over the whole global batch and all ranks; a term
                whose count is 0 is left out.

        Returns:
            This rank's sum of each term, 0 where another rank of its tensor-parallel group has the same, so that the
            sums add up over all ranks; and the gradient's norm before clipping over all ranks.
        """
        set_learning_rate(self._engine.optimizer, self.learning_rate(step))
        ranks = self.grid.data * self.grid.context
        scale = torch.tensor([ranks / count if count else 0.0 for count in counts], device=self.device)
        if self.draws:
            # The same on the same layout, also after a resume.
            torch.manual_seed(_derived_seed(self.config.seed, step, self.grid.rank))
        own = self._update(micro_batches, scale) * self.grid.is_loss_reporter
        return own.tolist(), float(self._engine.get_global_grad_norm())

    def _update(self, micro_batches: list[Batch], scale: torch.Tensor) -> torch.Tensor:
        """Forward and backward pass of every micro batch, and the update.

        `scale`: (terms,) factors of the sums, which make the loss of them. Returns (terms,), the sums in fp64.
        """
        self._engine.train()
        if self.features is not None:
            micro_batches = self.features.given(micro_batches)
        if self.whole_batch:
            micro_batches = self._with_whole_batch(micro_batches)
        sums = []
        for number, batch in enumerate(micro_batches, start=1):
            # DeepSpeed's own count of micro batches is fixed when it starts; the batch may grow.
            self._engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            with self._passes():
                with self.forward_timer:
                    terms = self._engine(batch.to(self.device))
                self._engine.backward((terms * scale).sum(), scale_wrt_gas=False)
            self._engine.step()
            sums.append(terms.detach())
        return torch.stack(sums).double().sum(0)

    @torch.no_grad()
    def _with_whole_batch(self, micro_batches: list[Batch]) -> list[Batch]:
        """The micro batches with what their losses take of all samples of the global batch, after a pass of each
        without gradients."""
        micro_batches = [batch.to(self.device) for batch in micro_batches]
        with self._passes(), self.forward_timer:
            represented = [self._engine.module(batch, represent=True) for batch in micro_batches]
        return with_whole_batch(micro_batches, represented, self._loss, self.grid)

    def learning_rate(self, step: int) -> float:
        """Learning rate of 0-based step `step`."""
        return learning_rate(self.config.schedule, self.config.optimizer.lr, self.config.train.steps, step)

    def loss(self, batch: Batch) -> float:
        """The first of `measure`."""
        return self.measure(batch)[0]

    @torch.no_grad()
    def measure(self, batch: Batch) -> list[float]:
        """Sum of weight x loss over a batch's targets, without training, as `train_step` gives it, and those of
        `Loss.measures`; where ranks share parameters they must call it together."""
        self._engine.eval()
        if self.features is not None:
            [batch] = self.features.given([batch])
        with self._passes():
            sums = self._engine.module(batch.to(self.device)).tolist()
        return [sums[i] * self.grid.is_loss_reporter for i in self._measured]

    def computed_twice(self, batch: Batch) -> tuple[int, str] | None:
        """Compute a batch twice, without dropout and without training: where this rank's results differ in a bit first,
        as place in the order of the computation and name; None where they are the same. All ranks call it together.

        What modules give is compared, the gradients of that and those of weights, before ranks add them up.
        """
        self._engine.eval()
        first, second = Fingerprints(), Fingerprints()
        for found in (first, second):
            with shims.backward_without_update(self._engine), self._watched(found):
                terms = self._engine.module(batch.to(self.device))
                found.add("the loss", terms)
                gradients(terms.sum(), self._objective)
        return first_difference(first, second)

    @contextlib.contextmanager
    def _watched(self, found: Fingerprints) -> Iterator[None]:
        """Within the block, what passes compute is noted, gradients included."""
        noted = fingerprints_of(self._objective, self.config.engine.compile, found)
        with torch.enable_grad(), self._passes(), noted:
            yield

    @property
    def _objective(self) -> ObjectiveModule:
        """This rank's part of the model, with its loss."""
        return self._engine.module

    @torch.no_grad()
    def score(self, batch: Batch) -> torch.Tensor:
        """Scores of the tokens that a batch asks for, without training; all ranks of a group that share parameters or
        samples must call it together, with the same batch where they share samples.

        Returns:
            (2, B, K) of at least fp32 on the CPU: log-probabilities in nats, and 1 where no token is more probable, 0
            for padding. Of use on ranks of the last stage alone (`RankGrid.has_scores`).
        """
        self._engine.eval()
        with self._passes():
            return over_positions(self._engine.module(batch.to(self.device)), self.grid).cpu()

    def with_shared(
        self, micro_batches: list[Batch], count: float, reduce: Callable[[list[float]], list[float]]
    ) -> list[Batch]:
        """The micro batches of a global batch with what their loss needs of all of it (`Loss.shared`), which takes a
        forward pass; collective.

        Args:
            count: samples of the global batch.
            reduce: sums each number over all ranks, in double precision.
        """
        if self.shared is None:
            return micro_batches
        place = 1 + list(self.measures).index(self.shared)
        [total] = reduce([math.fsum(self.measure(batch)[place] for batch in micro_batches)])
        return [with_label(batch, self.shared, total / count) for batch in micro_batches]

    @torch.no_grad()
    def predict(self, batch: Batch) -> torch.Tensor:
        """The logits of a head that is no language model's, without training, on the CPU; ranks that share weights or
        samples must call it together. Whole positions and stages are on each rank (`RankGrid.context`, `pipeline`)."""
        self._engine.eval()
        with self._passes():
            return self._engine.module(batch.to(self.device), predict=True).cpu()

    def _passes(self) -> contextlib.AbstractContextManager[None]:
        stage3 = self.config.engine.zero_stage == 3
        return shims.linear_that_keeps_no_weight() if stage3 else contextlib.nullcontext()

    def state(self) -> Iterator[Fragment]:
        """This rank's part of all weights and optimizer tensors, as views: copy before the next step."""
        return zero_state.fragments(self._engine, self.named)

    @contextlib.contextmanager
    def watched_gradients(self, seen: list[Fragment]) -> Iterator[None]:
        """Within the block, `seen` gets what this rank has of each gradient that an update uses: summed over all ranks
        and clipped."""
        with zero_state.watched_gradients(self._engine, self.named, seen):
            yield

    @property
    def optimizer_steps(self) -> int:
        """Updates made so far; skipped steps do not count."""
        return zero_state.optimizer_steps(self._engine)

    @property
    def counters(self) -> dict[str, Any]:
        """What a checkpoint keeps besides tensors: `optimizer_steps`, and in fp16 how the loss is scaled."""
        scaling = zero_state.loss_scaling(self._engine)
        return {"steps": self.optimizer_steps} | ({"loss_scaling": scaling} if scaling else {})

    def load_state(self, read: zero_state.SliceReader, counters: dict[str, Any]) -> None:
        """Continue from saved state.

        Args:
            read: gives slices of global tensors.
            counters: as they were.
        """
        zero_state.load(self._engine, self.named, read)
        zero_state.set_optimizer_steps(self._engine, int(counters["steps"]))
        zero_state.set_loss_scaling(self._engine, counters.get("loss_scaling", {}))


def _counted(named: list[tuple[str, nn.Parameter]]) -> tuple[int, int]:
    """Elements of the global tensors of some parameters: of all, and of those that are trained."""
    sizes = [(math.prod(slice_of(parameter).shape), parameter.requires_grad) for _, parameter in named]
    return sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)


def over_positions(scores: torch.Tensor, grid: RankGrid) -> torch.Tensor:
    """Scores of all positions, of which each context-parallel rank has found its own."""
    if grid.context > 1:
        dist.all_reduce(scores, group=grid.group("context"))
    return scores


def _derived_seed(*key: int) -> int:
    """A seed for torch's generator that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(f"{key}".encode()).digest()[:8], "little", signed=True)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The arithmetic that `engine.dtype` names on this device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def accumulation(train: TrainConfig, data_parallel: int, global_batch: int | None = None) -> tuple[int, int]:
    """`micro_batches` of one rank. `global_batch`: samples of the step, where it is not `train.global_batch`."""
    samples = (global_batch or train.global_batch) // data_parallel
    return micro_batches(samples, train.micro_batch)


@contextlib.contextmanager
def _stdout_to_log() -> Iterator[None]:
    """DeepSpeed prints while it starts; stdout carries our result only."""
    with io.StringIO() as printed:
        try:
            with contextlib.redirect_stdout(printed):
                yield
        finally:
            for line in printed.getvalue().splitlines():
                _LOGGER.info(line)
