"""What a head says of itself: everything that is special about it, in one file of this folder.

Nothing here needs torch until a model is built, since layouts, plans and tables of families ask too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from llmscale.config.model import HeadConfig, ModelConfig
from llmscale.families.hugging_face import HeadClass, HuggingFace, Settings, Weight
from llmscale.model.heads.labels import dropout_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from data_pipeline.batch import Batch

Cut = Literal["column", "row", "vocabulary"]
"""How tensor-parallel ranks share a module of a head (`llmscale.parallel.plans`)."""


class Sizes(NamedTuple):
    """One micro batch as a head of one rank sees it, for `Head.memory`."""

    vocab_size: int
    tokens: int
    """Positions for which something is predicted."""
    element: int
    """Bytes of a number."""
    residual: int
    """Bytes of the hidden states of all positions."""
    tensor: int
    """Tensor-parallel size."""


class Memory(NamedTuple):
    """Bytes that a head takes."""

    kept: int
    """From the forward to the backward pass."""
    forward: int = 0
    """Only while it computes its loss."""
    backward: int = 0
    """Only while its gradients are scaled."""


class Head(ABC):
    """A head: what predicts from the hidden states, and the loss of that."""

    name: ClassVar[str]
    """As in `ModelConfig.predicts` and `Batch.labels`."""
    attribute: ClassVar[str]
    """The module's name in the model, with which its tensors' names begin."""
    title: ClassVar[str | None] = None
    """What reports call its loss where it is not the first of its model's heads."""
    unit: ClassVar[str] = "nats"
    """Unit of that."""
    measures: tuple[str, ...] = ()
    """What is measured of held-out samples besides the loss, each as a mean over them."""
    higher_is_better: ClassVar[frozenset[str]] = frozenset()
    """Those of them of which more is better."""
    shared: str | None = None
    """Which of `measures` the loss itself needs: `Batch.labels` of that name is its mean over the global batch: (B,)
    of fp64, the same for all samples."""
    per_token: ClassVar[bool] = False
    """Whether each token of a text counts, so that there is a loss per byte."""
    generates: ClassVar[bool] = False
    """Whether it gives probabilities of the next token."""
    reads: Literal["each", "first", "whole"] = "each"
    """What one prediction is made of: its own position, the first of the sequence, or several of them."""
    features: ClassVar[Literal["row", "token"] | None] = None
    """What it reads of a row, where rows do not change from one pass over the data to the next: one vector, which
    `condensed` makes, or the hidden state of each token. None: rows change."""
    whole_batch: ClassVar[bool] = False
    """Whether the loss of a sample depends on the others of its global batch, by what `represent` makes of them."""
    told_beside: ClassVar[bool] = False
    """Whether other files than config.json say what the head is."""
    sharding: ClassVar[tuple[tuple[str, Cut], ...]] = ()
    """(module below the head, or "" for itself; how tensor-parallel ranks share it). All else is whole on each rank."""
    stage: ClassVar[int] = -1
    """The stage of a pipeline that has it: the last, which has the final hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        """`config`: of a model that has this head."""
        self.config = config

    @abstractmethod
    def build(self, vocab_size: int) -> nn.Module:
        """The module, of a model that knows `vocab_size` tokens."""

    @abstractmethod
    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """The sum of its loss over a batch, a scalar of at least fp32.

        Args:
            module: what `build` made, with this rank's part of it.
            hidden: (B, T, hidden_size).
            batch: with the targets and labels that belong to the hidden states.
            dropout: (B, 2) keys of what training drops (`llmscale.model.dropout.drop`); None: nothing.
        """

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """What the sum over a batch is divided by, once it is added up over the global batch."""

    def condensed(self, hidden: Tensor, batch: Batch) -> Tensor:
        """All that it reads of hidden states (B, T, hidden_size): (B, hidden_size), the vectors that stand for them in
        rows of one token, or with features of each token the same again."""
        return hidden

    def texts(self, batch: Batch) -> int:
        """Texts that stand one after the other in each row of a batch, each of which the model reads by itself: its
        hidden states are (B * texts, T, hidden_size)."""
        return 1

    def represent(self, module: nn.Module, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, ...) what the loss of other samples takes of each sample, where it takes the whole global batch."""
        raise AssertionError(f"the head {self.name} looks at each sample by itself")

    def of_whole_batch(self, represented: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each sample's loss needs of all others, (N, ...) each, as labels for `loss`.

        Args:
            represented: (N, ...) of all samples of the global batch.
            labels: (N, ...) theirs.
        """
        raise AssertionError(f"the head {self.name} looks at each sample by itself")

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        """The sum over a batch of each of `measures`."""
        return []

    @abstractmethod
    def parameters(self, vocab_size: int, *, tensor: int = 1, ties: bool = True) -> int:
        """Elements that one rank of `tensor` tensor-parallel ones holds, before ZeRO.

        `ties`: whether a weight that is shared with the embedding is counted there.
        """

    @abstractmethod
    def flops(self, vocab_size: int, targets: int) -> int:
        """Operations of products of the forward pass of one sample with so many targets."""

    @abstractmethod
    def memory(self, sizes: Sizes) -> Memory:
        """What one rank holds of one micro batch."""

    def deviation(self, name: str) -> float | None:
        """Standard deviation of the initial values of one of its tensors, by name below the head; None: as the model's
        `init_scheme` has it. Biases are 0, and weights of norms 1."""
        return None

    def weights(self, table: HuggingFace) -> tuple[Weight, ...]:
        """Rows that a family's weight map gets for the head; none where the family's own map has them."""
        return ()

    def class_name(self, table: HuggingFace) -> str | None:
        """transformers' class of a model of the family with this head, which `AutoModelFor...` opens; None: there is
        none, or what the family's own table says."""
        return None

    @classmethod
    def read(cls, name: str, table: HuggingFace, settings: Settings) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What a config.json says of the head.

        Args:
            name: the class that it names.
            table: of its family.
            settings: the file, of which the keys of this head are taken.

        Returns:
            `model.head`, and the objective section that a model with it is trained by; None for another class.

        Raises:
            Unsupported: an option that the head does not have.
        """
        return None

    def write(self, table: HuggingFace, objective: Mapping[str, Any]) -> dict[str, Any]:
        """Its keys of a config.json of a family; `objective`: the section that the model was trained by."""
        return {}

    def body(self, table: HuggingFace) -> str:
        """What the names of the body's tensors begin with in the class of a family that has this head."""
        return table.prefix

    def dropped(self, table: HuggingFace) -> tuple[str, ...]:
        """Regular expressions of tensors that are left out with a note where a directory has them."""
        return ()


class ProjectingHead(Head):
    """A head that projects vectors to a few numbers, the classes of which families list (`HuggingFace.heads`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.head is not None
        self._head: HeadConfig = config.head

    def build(self, vocab_size: int) -> nn.Module:
        from llmscale.model.projections import Projection

        return Projection(self.config, self._head)

    def parameters(self, vocab_size: int, *, tensor: int = 1, ties: bool = True) -> int:
        config, head = self.config, self._head
        hidden = config.hidden_size
        count = head.pooler * hidden * (hidden + 1) + head.outputs * (hidden + head.bias)
        return count + (transform_parameters(config) if head.transform else 0)

    def flops(self, vocab_size: int, targets: int) -> int:
        hidden, head = self.config.hidden_size, self._head
        return 2 * targets * hidden * ((head.pooler + head.transform) * hidden + head.outputs)

    def weights(self, table: HuggingFace) -> tuple[Weight, ...]:
        known = table.heads.get(self.name)
        if known is None:
            return ()
        rows = {**known.before, "classifier": known.projection}
        return tuple(
            Weight((f"{self.attribute}.{ours}.{{kind}}",), f"{theirs}.{{kind}}") for ours, theirs in rows.items()
        )

    def class_name(self, table: HuggingFace) -> str | None:
        return table.heads[self.name].name if self.name in table.heads else None

    def body(self, table: HuggingFace) -> str:
        known = table.heads.get(self.name)
        return table.prefix if known is None or known.body is None else known.body

    def dropped(self, table: HuggingFace) -> tuple[str, ...]:
        return table.heads[self.name].dropped if self.name in table.heads else ()

    @classmethod
    def class_of(cls, name: str, table: HuggingFace) -> HeadClass | None:
        """The class of a family with this head, where it has that name."""
        known = table.heads.get(cls.name)
        return known if known is not None and known.name == name else None

    @staticmethod
    def form(known: HeadClass, settings: Settings, table: HuggingFace) -> dict[str, Any]:
        """What a config.json says of the form of a class's head, as settings of `model.head` and of the objective."""
        return {"transform": known.transform, "dropout": dropout_of(settings, table, known)}


class TokenHead(ProjectingHead):
    """A head that projects the hidden state of each token."""

    features = "token"

    def logits(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """(B, T, outputs), of at least fp32."""
        import torch

        logits: Tensor = module(hidden, dropout)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def memory(self, sizes: Sizes) -> Memory:
        # Logits and their probabilities, in fp32; where something is dropped, what is left.
        kept = 8 * sizes.tokens * self._head.outputs + (sizes.residual if self._head.dropout else 0)
        # What goes into the activation and the norm, and comes out of the latter.
        return Memory(kept + (3 * sizes.residual if self._head.transform else 0))


def transform_parameters(config: ModelConfig) -> int:
    """Elements of a dense layer and the norm behind its activation (`llmscale.model.projections.Transform`)."""
    norm = config.hidden_size * (2 if config.norm == "layernorm" and config.has_bias("norm") else 1)
    return config.hidden_size * (config.hidden_size + config.bias) + norm
