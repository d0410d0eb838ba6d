"""A layout: everything that decides how a run is spread over its ranks, as one small value."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig
from llmscale.config.system import ParallelConfig

AXES = ("pipeline", "data", "context", "tensor")
"""The factors of the number of ranks, outermost first."""

ActivationCheckpointing = Literal["none", "block", "selective"]


class Layout(NamedTuple):
    """How a run is laid out; the fields are settings of `parallel` and `engine`, but for `ranks`.

    The defaults are one process.
    """

    ranks: int = 1
    pipeline: int = 1
    data: int | None = None
    """None: what the other sizes leave of the ranks."""
    context: int = 1
    tensor: int = 1
    sequence_parallel: bool = False
    expert: int = 1
    zero_stage: Literal[1, 2, 3] = 1
    compile: bool = False
    activation_checkpointing: ActivationCheckpointing = "none"

    @property
    def inner(self) -> int:
        """Ranks of one data-parallel replica."""
        return self.pipeline * self.context * self.tensor

    @property
    def replicas(self) -> int:
        """The data-parallel size; where the sizes do not multiply to the ranks, one that is at least positive."""
        return max(self.ranks // self.inner, 1) if self.data is None else self.data


SETTINGS = {
    name: name
    if name == "ranks"
    else f"{'engine' if name in ('zero_stage', 'compile', 'activation_checkpointing') else 'parallel'}.{name}"
    for name in Layout._fields
}
"""What each field of a layout is called in a config; the number of ranks is no setting but an option of launchers."""


def layout_of(config: RunConfig, ranks: int) -> Layout:
    """The layout that a config has on so many ranks, legal or not."""
    parallel, engine = config.parallel, config.engine
    return Layout(
        ranks=ranks,
        pipeline=parallel.pipeline,
        data=parallel.data,
        context=parallel.context,
        tensor=parallel.tensor,
        sequence_parallel=parallel.sequence_parallel,
        expert=parallel.expert,
        zero_stage=engine.zero_stage,
        compile=engine.compile,
        activation_checkpointing=engine.activation_checkpointing,
    )


def with_layout(config: RunConfig, layout: Layout) -> RunConfig:
    """The same run in another layout; `layout.ranks` ranks have to be started."""
    changes: dict[str, dict[str, Any]] = {"parallel": {}, "engine": {}}
    for field, setting in SETTINGS.items():
        if field != "ranks":
            section, _, name = setting.partition(".")
            changes[section][name] = getattr(layout, field)
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in changes.items()}
    return config.model_copy(update=sections)


def given_ranks(parallel: ParallelConfig) -> int:
    """The number of ranks that a config asks for by itself: the product of the sizes that it gives."""
    return math.prod(getattr(parallel, axis) or 1 for axis in AXES)


def data_parallel_size(parallel: ParallelConfig, ranks: int) -> int:
    """The data-parallel size of a run on so many ranks.

    Raises:
        UserError: the sizes do not multiply to the number of ranks.
    """
    sizes = {axis: getattr(parallel, axis) for axis in AXES}
    wrong = wrong_product(Layout(ranks=ranks, **sizes))
    if wrong:
        raise UserError(f"{wrong}; start {given_ranks(parallel)} ranks, or change the sizes")
    return Layout(ranks=ranks, **sizes).replicas


def wrong_product(layout: Layout) -> str | None:
    """Why the sizes do not multiply to the number of ranks, with every factor; None when they do."""
    factors = " x ".join(
        f"parallel.{axis} ({getattr(layout, axis)})" for axis in AXES if axis != "data" or layout.data is not None
    )
    has = f"the run has {layout.ranks} rank{'' if layout.ranks == 1 else 's'}"
    if layout.data is None and layout.ranks % layout.inner:
        return f"{has}, which is no multiple of {factors} = {layout.inner}"
    if layout.data is not None and layout.ranks != layout.inner * layout.data:
        return f"{has}, but {factors} = {layout.inner * layout.data}"
    return None
