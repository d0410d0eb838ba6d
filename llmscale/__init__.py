"""llmscale: train language models of every published family, from raw text to an evaluated model.

`Model` is a trained model, `Run` a training run (docs/guide/python.md). They are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmscale.interface import Model, Run, Score

__version__ = "0.1.0"
__all__ = ["Model", "Run", "Score", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in ("Model", "Run", "Score"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import llmscale.interface

    return getattr(llmscale.interface, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
