"""`llmscale plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmscale.commands.paths import PATH


@click.command()
@click.argument("config", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[dotted.key=value ...]")
@click.option("--gpus", type=click.IntRange(min=1), help="Search the layouts on this many GPUs.")
@click.option("--gpu-memory", help="Memory of a GPU, such as 80GiB.  [default: of --hardware]")
@click.option("--hardware", default="h100", show_default=True, help="Which GPU: a100, h100 or h200.")
@click.option("--calibration", type=PATH, help="Figures measured on your machine; JSON or YAML.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(config: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Forecast memory and time of a step of CONFIG, and with --gpus find the fastest layout that fits."""
    from llmscale.plan.commands import plan as print_plan

    print_plan(config, overrides, **options)
