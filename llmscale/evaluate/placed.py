"""A trained model where it is to be evaluated: whole in one process, or shared by ranks in any layout."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from data_pipeline.base.durable import read_file
from data_pipeline.base.errors import UserError
from data_pipeline.batch import Batch
from data_pipeline.tokenizer import Tokenizer, load_tokenizer
from llmscale.checkpoint.manifest import MANIFEST
from llmscale.checkpoint.model import TrainedModel, load_model, model_of
from llmscale.checkpoint.reader import Checkpoint, newest_intact
from llmscale.config import RunConfig, parse_config
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import World, all_reduce_sum
from llmscale.engine.engine import Engine, ObjectiveModule, resolve_dtype
from llmscale.engine.pipeline import make_engine
from llmscale.engine.settings import EngineSettings
from llmscale.engine.whole import whole_model
from llmscale.layout import require_legal
from llmscale.model import Transformer
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid

EVALUATION = (
    # What only training needs, and no optimizer state.
    "optimizer.name=sgd",
    "optimizer.momentum=0",
    "engine.activation_checkpointing=none",
    "engine.compile=false",
    "train.batch_ramp=null",
    "train.micro_batch=1",
)


BOUND = "2e-5 nats a token"
"""Within which scores of layouts that cut sums differ from those of one process."""


class Interrupted(Exception):
    """A rank was asked to leave in the middle of an evaluation; all leave at the same place."""


class Scoring(Protocol):
    """What scores batches: a training engine has it too."""

    @property
    def grid(self) -> RankGrid:
        """This rank's place."""
        ...

    def score(self, batch: Batch) -> torch.Tensor:
        """(2, B, K) on the CPU: log-probabilities in nats, and 1 where no token is more probable; of use where
        `grid.has_scores`. Ranks that share weights or samples must call it together."""
        ...

    def predict(self, batch: Batch) -> torch.Tensor:
        """The logits of a head that is no language model's, on the CPU; ranks that share weights or samples must call
        it together."""
        ...

    def loss(self, batch: Batch) -> float:
        """The sum of weight x loss over a batch's targets."""
        ...


@dataclass(frozen=True)
class Source:
    """Where a model's weights are from."""

    path: str
    """The checkpoint, or the run that is training it."""
    step: int
    digest: str
    """16 characters: equal ones mean equal weights."""
    evaluations: Path
    """Folder of the artefacts."""

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Source:
        """Artefacts are kept in the run, or beside a checkpoint that is in none."""
        digest = hashlib.sha256(read_file(checkpoint.path / MANIFEST)).hexdigest()[:16]
        folder = checkpoint.path.parent
        place = folder.parent if folder.name == "checkpoints" else folder
        return cls(str(checkpoint.path), checkpoint.step, digest, place / "evaluations")


@dataclass(frozen=True)
class Placed:
    """A trained model that can be asked."""

    scoring: Scoring
    tokenizer: Tokenizer
    config: RunConfig
    source: Source
    exactness: str
    """`exact`: scores are the same to the bit as those of one process; else within what they are."""
    close: Callable[[], None] = lambda: None
    stop: Callable[[], bool] = lambda: False
    """Whether this rank wants to leave in the middle."""

    def leave_if_asked(self) -> None:
        """Collective where the model is cut, as during training.

        Raises:
            Interrupted: on every rank, where any wants to leave.
        """
        if self.cut and all_reduce_sum([float(self.stop())])[0]:
            raise Interrupted

    @property
    def cut(self) -> bool:
        """Whether ranks may have parts of the model only."""
        return isinstance(self.scoring, Engine)

    @functools.cached_property
    def whole(self) -> Transformer:
        """The whole model with the weights of now; collective where it is cut."""
        if isinstance(self.scoring, Whole):
            return self.scoring.model
        assert isinstance(self.scoring, Engine)
        return whole_model(self.scoring, self.config.model.vocabulary(self.tokenizer.vocab_size))

    @property
    def whole_exactness(self) -> str:
        """As `exactness`, of what the whole model makes."""
        if isinstance(self.scoring, Whole):
            return self.exactness
        assert isinstance(self.scoring, Engine)
        return exactness(self.scoring.device, self.scoring.dtype, RankGrid())

    def own_items(self, count: int) -> range:
        """Places of the items that this rank asks its head about: a share of them, or all where ranks must compute
        together.

        Raises:
            UserError: no rank has all that a head looks at.
        """
        grid = self.scoring.grid
        if self.cut and grid.pipeline * grid.context > 1:
            raise UserError(
                f"it needs whole texts and all layers on each rank, but parallel.pipeline is {grid.pipeline} and"
                f" parallel.context {grid.context}; set both to 1"
            )
        together = self.cut and (self.config.engine.zero_stage == 3 or grid.expert > 1)
        return range(count) if together else range(grid.coordinate("data"), count, grid.data)


class Whole:
    """The whole model in this process, without DeepSpeed; other ranks may have it too, for other samples."""

    def __init__(self, trained: TrainedModel, device: torch.device, grid: RankGrid) -> None:
        self.grid = grid
        self.model = trained.model
        self._device = device
        self._module = ObjectiveModule(
            trained.model,
            build_loss(trained.config.objective, trained.config.model),
            EngineSettings.of(trained.config),
            self.grid,
        ).eval()

    @torch.no_grad()
    def score(self, batch: Batch) -> torch.Tensor:
        return self._module(batch.to(self._device)).cpu()

    @torch.no_grad()
    def predict(self, batch: Batch) -> torch.Tensor:
        return self._module(batch.to(self._device), predict=True).cpu()

    @torch.no_grad()
    def loss(self, batch: Batch) -> float:
        return float(self._module(batch.to(self._device))[0])


def place_whole(path: str, device: torch.device, dtype: torch.dtype) -> Placed:
    """The model of a checkpoint in this process.

    Raises:
        UserError: as `load_model`.
    """
    return _whole(load_model(path, device, dtype), device, dtype, RankGrid())


def _whole(trained: TrainedModel, device: torch.device, dtype: torch.dtype, grid: RankGrid) -> Placed:
    source, scoring = Source.of_checkpoint(trained.checkpoint), Whole(trained, device, grid)
    return Placed(scoring, trained.tokenizer, trained.config, source, exactness(device, dtype, grid))


def place_on_ranks(path: str, overrides: tuple[str, ...], world: World, dtype: str) -> Placed:
    """This rank's part of the model of a checkpoint; collective.

    Args:
        overrides: of `parallel` and `engine`; what they leave out is not as the run had it, but as it is by default.
        dtype: as `engine.dtype`.

    Raises:
        UserError: no intact checkpoint, or a layout that is not legal for it.
    """
    checkpoint = Checkpoint(on_rank_zero(lambda: str(newest_intact(path).path)))
    raw = {**checkpoint.manifest.config, "parallel": {}, "engine": {"dtype": dtype}}
    # A global batch that any number of ranks can share.
    batch = f"train.global_batch={world.size * raw['train']['global_batch']}"
    config = parse_config(raw, (*EVALUATION, batch, *overrides), origin=str(checkpoint.path))
    require_legal(config, world.size)
    grid = RankGrid.of(config.parallel, world.size, world.rank).with_groups()
    if grid.data == world.size and grid.expert == 1 and config.engine.zero_stage < 3:
        kind = resolve_dtype(dtype, world.device)
        return _whole(model_of(checkpoint, world.device, kind), world.device, kind, grid)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    vocab_size = config.model.vocabulary(tokenizer.vocab_size)
    model = init.build_hollow(config.model, vocab_size, grid, config.parallel.sequence_parallel)
    loss = build_loss(config.objective, config.model)
    engine = make_engine(model, loss, EngineSettings.of(config), grid, world.device, checkpoint.read)
    source = Source.of_checkpoint(checkpoint)
    within = exactness(engine.device, engine.dtype, grid)
    return Placed(engine, tokenizer, config, source, within, close=engine.close)


def exactness(device: torch.device, dtype: torch.dtype, grid: RankGrid) -> str:
    """How close scores are to those of one process on the CPU in fp32: the same bits where no sum is cut; a GPU chooses
    its kernels by the shape of a batch, and narrow types round more."""
    if device.type != "cpu" or dtype != torch.float32:
        return f"rounding of {str(dtype).removeprefix('torch.')} on {device.type}"
    return "exact" if grid.tensor == grid.context == 1 else BOUND
