"""A plan as tables on the screen, and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from llmscale.plan.flops import flops
from llmscale.plan.hardware import Hardware
from llmscale.plan.layout import Layout
from llmscale.plan.memory import Memory, element_bytes
from llmscale.plan.parameters import parameters
from llmscale.plan.search import Forecast, Planner
from llmscale.plan.timing import Step

SHOWN = 15
"""Layouts that the table has."""
WIDTH = 100
"""Characters of a line that goes to a file or a pipe."""
_SECONDS = ("products", "attention", "passes", "recompute", "tensor", "data", "bubble", "sending", "optimizer")
_COLUMNS = ("dp", "tp", "cp", "pp", "ep", "ZeRO", "recompute", "micro")
_ALWAYS = ("dp", "tp", "ZeRO", "recompute", "micro")
"""Columns of the table of layouts that stand there even where all have 1."""
_CAUSES = {
    "products": "GEMMs",
    "attention": "attention",
    "passes": "norms, activations, sums",
    "recompute": "recomputation",
    "tensor": "communication within layers",
    "data": "data parallelism, not hidden",
    "bubble": "pipeline bubble",
    "sending": "pipeline P2P",
    "optimizer": "optimizer",
}


@dataclass(frozen=True)
class Plan:
    """All that a plan says."""

    planner: Planner
    ranks: int
    own: Forecast | None
    """The config's own layout; None where it is not legal."""
    problem: str | None
    """Why it is not."""
    layouts: list[Forecast]
    """Legal layouts that fit, the fastest first; none where no number of GPUs was asked for."""


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: bytes, seconds, operations."""
    planner = plan.planner
    config, work, gpu = planner.config, planner.work, planner.gpu
    counts = parameters(config.model, work.vocab_size)
    work_flops = flops(config.model, work)
    return {
        "parameters": {"total": sum(counts.values()), **counts},
        "flops_per_sample": {
            "forward": work_flops.forward,
            "backward": work_flops.backward,
            "recompute": {mode: work_flops.recomputed(mode) for mode in ("none", "selective", "block")},
        },
        "tokens_per_sample": work.tokens,
        "samples_per_step": config.train.global_batch,
        "hardware": {
            "name": gpu.name,
            "peak": gpu.peak(element_bytes(config)),
            "memory": planner.limit,
            "source": gpu.source,
            "published": None if gpu.published is None else asdict(gpu.published),
        },
        "gpus": plan.ranks,
        "layout": None if plan.own is None else _forecast(plan.own, planner),
        "problem": plan.problem,
        "layouts": [_forecast(found, planner) for found in plan.layouts],
    }


def _forecast(found: Forecast, planner: Planner) -> dict[str, Any]:
    step = found.step
    return {
        "layout": asdict(found.layout),
        "overrides": overrides(found.layout),
        "memory": {**asdict(found.memory), "total": found.memory.total},
        "fits": planner.fits(found.memory),
        "seconds": step.seconds,
        "seconds_of_nine_runs_in_ten": _interval(planner, step),
        "seconds_by_cause": {name: getattr(step, name) for name in _SECONDS},
        "tflops": step.tflops,
        "hardware_tflops": step.hardware_tflops,
        "mfu": step.mfu,
        "tokens_per_second": planner.config.train.global_batch * planner.work.tokens / step.seconds,
    }


def overrides(layout: Layout) -> list[str]:
    """The settings of a layout as `dotted.key=value`; what is at its default is left out."""
    settings: dict[str, Any] = {
        "parallel.tensor": layout.tensor,
        "parallel.sequence_parallel": layout.sequence_parallel,
        "parallel.context": layout.context,
        "parallel.pipeline": layout.pipeline,
        "parallel.expert": layout.expert,
    }
    changed = [f"{key}={str(value).lower()}" for key, value in settings.items() if value not in (1, False)]
    return [
        *changed,
        f"engine.zero_stage={layout.zero_stage}",
        f"engine.activation_checkpointing={layout.activation_checkpointing}",
        f"train.micro_batch={layout.micro_batch}",
    ]


def show(plan: Plan) -> None:
    """Print the plan on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    _show_model(console, plan)
    if plan.problem:
        console.print(f"The config's own layout is not legal on {plan.ranks} GPUs: {plan.problem}", markup=False)
    if plan.own is not None:
        _show_own(console, plan, plan.own)
    if plan.layouts:
        _show_layouts(console, plan)
    gpu = plan.planner.gpu
    peak = gpu.peak(element_bytes(plan.planner.config)) / 1e12
    console.print(f"{gpu.name}: MFU is of {peak:.4g} TFLOP/s; figures from {gpu.source}", markup=False)
    console.print(_error(gpu), markup=False)


def _error(gpu: Hardware) -> str:
    """How far forecasts of times have been from published times."""
    published = gpu.published
    if published is None:
        return "Forecasts of time with these figures have not been compared with real runs."
    return (
        f"Forecasts of time are optimistic: {published.runs} published runs ({published.source}) took"
        f" {published.median:.2f} x the forecast at the median, nine of ten {published.low:.2f} to"
        f" {published.high:.2f} x."
    )


def _show_model(console: Console, plan: Plan) -> None:
    config, work = plan.planner.config, plan.planner.work
    counts = parameters(config.model, work.vocab_size)
    numbers = flops(config.model, work)
    table = Table("parameters", box=box.SIMPLE_HEAD)
    table.add_column("elements", justify="right")
    for part, elements in counts.items():
        table.add_row(part.replace("_", " "), f"{elements:,}")
    table.add_section()
    table.add_row("all", f"{sum(counts.values()):,}")
    console.print(table)
    tokens = work.tokens
    console.print(
        f"{numbers.model / tokens / 1e9:,.3f} GFLOP per token: {numbers.forward / tokens / 1e9:,.3f} forward,"
        f" {numbers.backward / tokens / 1e9:,.3f} backward;"
        f" {numbers.recomputed('block') / tokens / 1e9:,.3f} more with engine.activation_checkpointing=block"
    )
    samples = config.train.global_batch
    console.print(f"{samples:,} samples of {tokens:,} tokens in a step: {samples * numbers.model / 1e15:,.4g} PFLOP")


def _show_own(console: Console, plan: Plan, own: Forecast) -> None:
    layout, limit = own.layout, plan.planner.limit
    verdict = "fits" if plan.planner.fits(own.memory) else "does not fit"
    ranks = f"{plan.ranks} GPU{'' if plan.ranks == 1 else 's'}"
    console.print(f"\nThe config's own layout on {ranks}, {_sizes(layout)}, {verdict} {_gib(limit)} GiB:", markup=False)
    table = Table("memory of a GPU", box=box.SIMPLE_HEAD)
    table.add_column("GiB", justify="right")
    table.add_column("time of a step")
    table.add_column("s", justify="right")
    table.add_column("share", justify="right")
    step = own.step
    left = [(field.name, getattr(own.memory, field.name)) for field in fields(Memory) if field.name != "moment"]
    left.append((f"all, at most in: {own.memory.moment}", None))
    right = [name for name in _SECONDS if getattr(step, name) or name == "products"]
    for place in range(max(len(left), len(right) + 1)):
        table.add_row(*_memory_cells(left, place, own.memory), *_time_cells(right, place, step))
    console.print(table)
    console.print(_rate(plan.planner, step))


def _memory_cells(rows: list[tuple[str, Any]], place: int, whole: Memory) -> tuple[str, str]:
    if place >= len(rows):
        return "", ""
    name, size = rows[place]
    return name, _gib(whole.total if size is None else size)


def _time_cells(names: list[str], place: int, step: Step) -> tuple[str, str, str]:
    if place < len(names):
        seconds = getattr(step, names[place])
        return _CAUSES[names[place]], f"{seconds:.4g}", f"{seconds / step.seconds:.1%}"
    return ("all", f"{step.seconds:.4g}", "") if place == len(names) else ("", "", "")


def _rate(planner: Planner, step: Step) -> str:
    tokens = planner.config.train.global_batch * planner.work.tokens / step.seconds
    rate = f"{tokens:,.0f} tokens/s, {step.tflops:.1f} TFLOP/s for each GPU, MFU {step.mfu:.1%}"
    interval = _interval(planner, step)
    if interval is None:
        return rate
    low, high = interval
    return f"{rate}; expect {low:.4g} to {high:.4g} s a step, that is, MFU {_mfu(step, high)} to {_mfu(step, low)}"


def _interval(planner: Planner, step: Step) -> tuple[float, float] | None:
    published = planner.gpu.published
    return None if published is None else published.interval(step.seconds)


def _mfu(step: Step, seconds: float) -> str:
    return f"{step.mfu * step.seconds / seconds:.1%}"


def _show_layouts(console: Console, plan: Plan) -> None:
    shown = plan.layouts[:SHOWN]
    count = len(plan.layouts)
    console.print(
        f"\n{count} legal layout{'' if count == 1 else 's'} on {plan.ranks} GPUs fit{'s' if count == 1 else ''}"
        f" {_gib(plan.planner.limit)} GiB each; the fastest first:",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    kept = [place for place, name in enumerate(_COLUMNS) if name in _ALWAYS or _varies(shown, place)]
    for place in kept:
        table.add_column(_COLUMNS[place], justify="right", no_wrap=True)
    for name in ("GiB", "s/step", "TFLOP/s", "MFU", "bubble"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in shown:
        cells, step = _layout_cells(found.layout), found.step
        table.add_row(
            *(cells[place] for place in kept),
            _gib(found.memory.total),
            f"{step.seconds:.4g}",
            f"{step.tflops:.1f}",
            f"{step.mfu:.1%}",
            f"{step.bubble / step.seconds:.1%}",
        )
    console.print(table)
    console.print(f"The first as overrides: {' '.join(overrides(shown[0].layout))}", markup=False)


def _varies(shown: list[Forecast], place: int) -> bool:
    return any(_layout_cells(found.layout)[place] != "1" for found in shown)


def _layout_cells(layout: Layout) -> tuple[str, ...]:
    tensor = f"{layout.tensor}{'+seq' if layout.sequence_parallel else ''}"
    sizes = (str(layout.data), tensor, str(layout.context), str(layout.pipeline), str(layout.expert))
    return (
        *sizes,
        str(layout.zero_stage),
        layout.activation_checkpointing,
        f"{layout.micro_batch} x {layout.accumulation}",
    )


def _sizes(layout: Layout) -> str:
    sizes = {"data": layout.data, "tensor": layout.tensor, "context": layout.context, "pipeline": layout.pipeline}
    parts = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    if layout.expert > 1:
        parts.append(f"expert {layout.expert}")
    parts.append(f"ZeRO {layout.zero_stage}, recompute {layout.activation_checkpointing}")
    return f"{' x '.join(parts)}, {layout.accumulation} micro batches of {layout.micro_batch}"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.2f}"
