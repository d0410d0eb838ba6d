"""Adafactor: second moments as an outer product of row and column statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmscale.config.training import OptimizerConfig
from llmscale.engine.optimizers.sharded import Part, ShardedOptimizer, zeros

EPSILON_GRADIENT, EPSILON_SCALE = 1e-30, 1e-3
"""Epsilon 1, added to squared gradients, and epsilon 2, the least scale of a parameter (section 8, algorithm 4)."""
CLIP_THRESHOLD = 1.0
"""d: the largest root mean square of a tensor's update before it is scaled (section 6)."""
DECAY_POWER = -0.8
"""beta2 of step t is 1 - t^DECAY_POWER (section 7.2)."""
WHOLE, ROWS, COLUMNS = "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"


class Adafactor(ShardedOptimizer):
    """Adafactor (Shazeer and Stern 2018, algorithms 4 to 6), with the learning rate given from outside.

    Of a tensor (..., rows, columns) it keeps moving means of squared gradients over each row (..., rows) and each
    column (..., columns), of a vector one per element. These statistics of matrices are small: every rank has all of
    them, and a step makes them from sums over the ranks' parts. Tensors of a partition are treated together, so a step
    takes two all-reduces a partition: statistics and parameter scale, then the size of each update.

    Args:
        groups: parameters, or dictionaries of parameters with options of their own. `factored` False says of a group
            that its tensors are vectors or stacks of vectors, whatever their number of dimensions.
        lr: with `scale_parameter` relative to the root mean square of each tensor, else absolute.
        scale_parameter: multiply the learning rate by max(1e-3, root mean square of the tensor) (section 8).
        momentum: decay of a moving mean of updates; 0 keeps none (section 8.2).
        weight_decay: decoupled, by `lr` as for the other optimizers, not by the scaled one.
    """

    def __init__(
        self,
        groups: Any,
        lr: float = 1e-2,
        scale_parameter: bool = True,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "scale_parameter": scale_parameter, "momentum": momentum, "weight_decay": weight_decay}
        defaults["factored"] = True
        super().__init__(groups, defaults)

    def create_state(self, partition: Tensor, options: dict[str, Any]) -> None:
        state = self.state[partition]
        # On the CPU, where its value is needed.
        state["step"] = torch.zeros(())
        if options["momentum"]:
            state["exp_avg"] = zeros(partition)
        for part in self.parts(partition):
            if not _factored(part, options):
                state.setdefault(WHOLE, zeros(partition))
                continue
            *leading, rows, columns = part.held.shape
            part.shared[ROWS] = torch.zeros([*leading, rows], dtype=torch.float32, device=partition.device)
            part.shared[COLUMNS] = torch.zeros([*leading, columns], dtype=torch.float32, device=partition.device)

    def update(self, partition: Tensor, gradient: Tensor, options: dict[str, Any]) -> None:
        parts, state = self.parts(partition), self.state[partition]
        state["step"] += 1
        new = float(state["step"]) ** DECAY_POWER
        scales = self._update_moments(partition, gradient, options, new)
        updates = gradient.view(-1)
        sizes = torch.zeros(len(parts), device=partition.device)
        for place, part in enumerate(parts):
            values = part.of(updates)
            if not _factored(part, options):
                values.mul_(part.of(state[WHOLE]).rsqrt())
            else:
                _divide_by_root(part, values)
            sizes[place] = values.square().sum()
        self._sum_over_ranks(partition, sizes)
        for part, size, scale in zip(parts, sizes, scales, strict=True):
            rate = options["lr"] / ((size / part.numel).sqrt() / CLIP_THRESHOLD).clamp(min=1.0)
            if options["scale_parameter"]:
                rate = rate * (scale / part.numel).sqrt().clamp(min=EPSILON_SCALE)
            update = part.of(updates).mul_(rate)
            if options["momentum"]:
                update = part.of(state["exp_avg"]).lerp_(update, 1 - options["momentum"])
            part.of(partition).mul_(1 - options["lr"] * options["weight_decay"]).sub_(update)

    def _update_moments(self, partition: Tensor, gradient: Tensor, options: dict[str, Any], new: float) -> Tensor:
        """Bring the second moments up to date; returns the sum of squares of each tensor's own values.

        `new`: the weight of this step's squares, 1 - beta2.
        """
        parts = self.parts(partition)
        sums = [self._partial_sums(partition, gradient, part, options) for part in parts]
        packed = torch.cat([piece.reshape(-1) for pieces in sums for piece in pieces])
        self._sum_over_ranks(partition, packed)
        whole = iter(packed.split([piece.numel() for pieces in sums for piece in pieces]))
        scales = []
        for part in parts:
            scales.append(next(whole)[0])
            if not _factored(part, options):
                squares = part.of(gradient).square().add_(EPSILON_GRADIENT)
                part.of(self.state[partition][WHOLE]).lerp_(squares, new)
                continue
            _, rows, columns = part.stack
            for kind, length in ((ROWS, columns), (COLUMNS, rows)):
                statistic = part.shared[kind]
                statistic.lerp_(next(whole).view_as(statistic) / length + EPSILON_GRADIENT, new)
        return torch.stack(scales)

    def _partial_sums(self, partition: Tensor, gradient: Tensor, part: Part, options: dict[str, Any]) -> list[Tensor]:
        """This rank's part of: the sum of squares of the values, and of the gradient over each row and column."""
        found = [part.of(partition).square().sum().view(1)]
        if _factored(part, options):
            count, rows, columns = part.stack
            by_row = torch.zeros(count, rows, device=partition.device)
            by_column = torch.zeros(count, columns, device=partition.device)
            for matrix, row, column, values in part.rectangles(part.of(gradient)):
                squares = values.square()
                by_row[matrix, row] += squares.sum(dim=-1)
                by_column[matrix, column] += squares.sum(dim=-2)
            found += [by_row, by_column]
        return found


def second_moments(rows: Tensor, columns: Tensor) -> Tensor:
    """The second moments (..., rows, columns) that their means over each row (..., rows) and over each column
    (..., columns) stand for (section 3, algorithm 2)."""
    return (rows / rows.mean(dim=-1, keepdim=True))[..., None] * columns[..., None, :]


def _factored(part: Part, options: dict[str, Any]) -> bool:
    """Whether only sums over rows and columns are kept of a tensor's second moments."""
    return options["factored"] and len(part.held.shape) >= 2


def _divide_by_root(part: Part, values: Tensor) -> None:
    """Divide this rank's part of a gradient by the root of the factored second moment (section 3, algorithm 2)."""
    count, rows, columns = part.stack
    by_row = part.shared[ROWS].view(count, rows)
    by_row = (by_row / by_row.mean(dim=-1, keepdim=True)).rsqrt()
    by_column = part.shared[COLUMNS].view(count, columns).rsqrt()
    for matrix, row, column, view in part.rectangles(values):
        view.mul_(by_row[matrix, row, None] * by_column[matrix, None, column])


def make(groups: list[dict[str, Any]], settings: OptimizerConfig, arithmetic: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of the settings."""
    return Adafactor(groups, lr=settings.lr, scale_parameter=settings.scale_parameter, momentum=settings.momentum)
