"""The libraries of the optional extra `clean`."""

import importlib
from typing import Any

from data_pipeline.base.errors import UserError


def require(module: str, where: str) -> Any:
    """Import a module of the extra.

    Args:
        module: its dotted name.
        where: the setting that needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{where} needs {module.partition('.')[0]}, which is not installed; run pip install 'llmscale[clean]'"
        ) from None
