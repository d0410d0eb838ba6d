"""Where a trained model computes, and in which arithmetic: options that commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from data_pipeline.base.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "fp32", "bf16", "fp16")


def device_options(command: Any) -> Any:
    """`--device` and `--dtype`, whose values are among `DEVICES` and `DTYPES`."""
    device = click.option(
        "--device",
        default="auto",
        show_default=True,
        callback=_among(DEVICES),
        metavar=f"[{'|'.join(DEVICES)}]",
        help="auto: the GPU where there is one.",
    )
    dtype = click.option(
        "--dtype", default="auto", callback=_among(DTYPES), metavar=f"[{'|'.join(DTYPES)}]", help="auto is fp32."
    )
    return device(dtype(command))


def _among(known: tuple[str, ...]) -> Any:
    def check(context: click.Context, parameter: click.Parameter, value: str) -> str:
        if value not in known:
            raise UserError(f"--{parameter.name} is {value!r}, but must be one of {', '.join(known)}; give one of them")
        return value

    return check


def require_device(device: str) -> None:
    """Refuse a GPU that is not there.

    Raises:
        UserError: says what to give instead.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch sees no GPU here; give --device cpu or auto")


def chosen(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """What a model of one process is loaded on, and as.

    Raises:
        UserError: as `require_device`.
    """
    import torch

    from llmscale.engine.engine import resolve_dtype

    require_device(device)
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    place = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    return place, resolve_dtype("fp32" if dtype == "auto" else dtype, place)
