"""Asking a fine-tuned head about items, whatever it predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from data_pipeline.base.errors import UserError
from data_pipeline.objectives import ObjectiveSettings
from data_pipeline.reading.item import Item
from llmscale.distributed.process_group import gather_objects, gather_to_lead
from llmscale.evaluate.artefact import Record
from llmscale.evaluate.placed import Placed

Value = TypeVar("Value")
BATCH_TOKENS = 4096
"""Tokens of a forward pass, about."""


class HeadAsker(ABC):
    """Asks a head; each data-parallel rank has the whole model, and a share of the items."""

    trained_by: ClassVar[type[ObjectiveSettings]]
    """The objective whose head it asks."""
    needs: ClassVar[str] = ""
    """What else of the objective `suits` asks for, for messages."""
    window: ClassVar[int] = 64
    """Items whose records are written at once."""

    def __init__(self, placed: Placed, settings: Any) -> None:
        """
        Args:
            settings: of the task.

        Raises:
            UserError: the model has no such head, has other labels than the task, or is cut over ranks.
        """
        objective: Any = placed.config.objective
        if not isinstance(objective, self.trained_by) or not self.suits(objective):
            wanted = self.trained_by.model_fields["name"].default
            raise UserError(
                f"it needs a model that was fine-tuned for it (objective.name={wanted}{self.needs}), but"
                f" {placed.source.path} was trained by objective {objective.name}; give another checkpoint"
            )
        placed.own_items(0)
        self._placed = placed
        self.objective: Any = objective
        self.tokenizer = placed.tokenizer
        self._grid = placed.scoring.grid
        self._most = placed.config.model.max_positions

    @classmethod
    def suits(cls, objective: Any) -> bool:
        """Whether the objective's settings are such that the head answers tasks of this kind."""
        return True

    def require_labels(self, labels: Sequence[str]) -> None:
        """Raise UserError unless the head's labels are those of the task, in any order."""
        if sorted(self.objective.labels) != sorted(labels):
            raise UserError(
                f"its labels are {', '.join(labels)}, but those of {self._placed.source.path} are"
                f" {', '.join(self.objective.labels)}; give a model with the same labels"
            )

    def in_turn(self, batches: Sequence[Value]) -> Iterator[Value]:
        """This rank's batches, ahead of each of which all ranks look for a signal to leave; collective where the model
        is cut."""
        # Ranks have more or fewer of them, but must look equally often.
        rounds = max(gather_objects(len(batches))) if self._placed.cut else len(batches)
        for number in range(rounds):
            self._placed.leave_if_asked()
            yield from batches[number : number + 1]

    @abstractmethod
    def found(self, items: Sequence[Item]) -> list[Record]:
        """The records of some items."""

    def records(
        self, items: Sequence[Item], progress: Callable[[int], None] = lambda items: None
    ) -> Iterator[list[Record]]:
        """Records of items, some at a time and in their order; on rank 0, while the others get empty lists."""
        for first in range(0, len(items), self.window):
            some = items[first : first + self.window]
            own = self.found([some[place] for place in self._placed.own_items(len(some))])
            shares = [own] if self._grid.world_size == 1 else gather_to_lead(own)
            if shares is not None:
                progress(len(some))
            known = {record.number: record for share in shares or () for record in share}
            yield [known[item.number] for item in some] if shares is not None else []
