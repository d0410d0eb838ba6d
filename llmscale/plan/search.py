"""Which legal layouts fit the memory, and which of them should be fastest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.base.errors import UserError
from llmscale import layout as layouts
from llmscale.config import RunConfig
from llmscale.layout.facts import facts_of
from llmscale.layout.nearest import divisors
from llmscale.plan.blocks import software_of
from llmscale.plan.hardware import Hardware
from llmscale.plan.layout import Layout, layout_of
from llmscale.plan.memory import Memory, element_bytes, memory
from llmscale.plan.timing import Forecaster, Step
from llmscale.plan.workload import Workload

HEADROOM = 0.06
"""Share of a GPU's memory left to the CUDA context, to NCCL's buffers and to what the allocator cannot use: a rule of
thumb, not a forecast."""
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
"""Samples of a micro batch that are tried, besides the config's own."""
MOST_RANKS = 1 << 16


@dataclass(frozen=True)
class Forecast:
    """What one layout needs and how fast it should be."""

    layout: Layout
    memory: Memory
    step: Step


@dataclass(frozen=True)
class Planner:
    """Forecasts of one config on one kind of GPU."""

    config: RunConfig
    work: Workload
    gpu: Hardware
    limit: float
    """Bytes of memory of one GPU."""

    def forecaster(self) -> Forecaster:
        """Times of this config's layers; keep it, since it remembers them."""
        engine = self.config.engine
        software = software_of(
            self.config.model, element_bytes(self.config), engine.compile, engine.dropout_layout_free
        )
        return Forecaster(self.gpu, self.config.model, self.work, software)

    def fits(self, needed: Memory) -> bool:
        """Whether a peak fits, with some room left."""
        return needed.total <= self.limit * (1 - HEADROOM)

    def own(self, ranks: int) -> Forecast:
        """The config's own layout, whether it fits or not; it must be legal."""
        layout = layout_of(self.config, layouts.layout_of(self.config, ranks), self.config.train.micro_batch)
        step = self.forecaster().step(layout, self.config.train.global_batch)
        return Forecast(layout, memory(self.config, self.work, layout), step)

    def search(self, ranks: int) -> list[Forecast]:
        """All legal layouts on so many ranks that fit, the fastest first.

        Raises:
            UserError: none is legal; or none fits, with the smallest number of ranks on which one would.
        """
        forecaster = self.forecaster()
        found = []
        any_legal = False
        for legal in self._legal(ranks):
            any_legal = True
            for layout, needed in self._fitting(legal):
                found.append(Forecast(layout, needed, forecaster.step(layout, self.config.train.global_batch)))
        if not any_legal:
            self._refuse(ranks)
        if not found:
            raise UserError(self._too_large(ranks))
        # Of equally fast ones that which needs less memory.
        return sorted(found, key=lambda forecast: (round(forecast.step.seconds, 9), forecast.memory.total))

    def _legal(self, ranks: int) -> Iterator[layouts.Layout]:
        """Legal layouts whose tensor-parallel ranks share a node."""
        free = self.config.model_copy(update={"parallel": self.config.parallel.model_copy(update={"data": None})})
        for legal in layouts.legal_layouts(free, ranks):
            if legal.tensor <= self.gpu.gpus_per_node:
                yield legal

    def _fitting(self, legal: layouts.Layout) -> Iterator[tuple[Layout, Memory]]:
        """The layout with each size of micro batch that fits."""
        tried = set()
        for largest in sorted({*MICRO_BATCHES, self.config.train.micro_batch}):
            layout = layout_of(self.config, legal, largest)
            if layout.micro_batch in tried:
                continue
            tried.add(layout.micro_batch)
            needed = memory(self.config, self.work, layout)
            if not self.fits(needed):
                return  # A larger one needs more.
            yield layout, needed

    def _refuse(self, ranks: int) -> None:
        found = layouts.problem(self.config.model_copy(update={"parallel": type(self.config.parallel)()}), ranks)
        reason = found.sentence if found else "no layout is legal"
        raise UserError(f"--gpus is {ranks}, on which no layout is legal: {reason}")

    def _too_large(self, ranks: int) -> str:
        wanted = f"no legal layout on {ranks} GPU{'' if ranks == 1 else 's'} fits {self.limit / 2**30:.4g} GiB each"
        smallest = next((size for size in self._sizes() if size > ranks and self._some_fits(size)), None)
        if smallest is None:
            return f"{wanted}, nor does one on any larger number; give GPUs with more memory, or shorter sequences"
        return f"{wanted}; {smallest} is the smallest number of GPUs on which one does: use --gpus {smallest}"

    def _sizes(self) -> list[int]:
        """Numbers of ranks on which a layout may be legal."""
        facts = facts_of(self.config)
        tensors = [size for size in divisors(facts.widest_tensor) if size <= self.gpu.gpus_per_node]
        inner = {
            tensor * pipeline * context
            for tensor in tensors
            for pipeline in range(1, facts.layers + 1)
            for context in divisors(facts.widest_context)
            if pipeline == 1 or context == 1
        }
        sizes = {data * size for data in divisors(facts.widest_data) for size in inner}
        return sorted(size for size in sizes if size <= MOST_RANKS)

    def _some_fits(self, ranks: int) -> bool:
        """Whether the smallest micro batch of some layout fits; recomputing whole blocks needs least."""
        engine = self.config.engine.model_copy(update={"activation_checkpointing": "block"})
        parallel = self.config.parallel.model_copy(update={"data": None})
        frugal = self.config.model_copy(update={"engine": engine, "parallel": parallel})
        free = [field for field in layouts.FREE if field != "activation_checkpointing"]
        for legal in layouts.legal_layouts(frugal, ranks, free):
            if legal.tensor > self.gpu.gpus_per_node:
                continue
            if self.fits(memory(self.config, self.work, layout_of(self.config, legal, 1))):
                return True
        return False
