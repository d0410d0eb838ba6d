"""Output that nobody reads any more must not end a training."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

_GONE = (errno.EIO, errno.EPIPE)
"""Of a terminal that was closed, and of a pipe whose reader has ended."""


class LastingStream:
    """A text stream that falls silent when its terminal or its reader is gone, instead of raising OSError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, for as long as there is somebody to read it; returns its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fall_silent(error)
            return len(text)

    def flush(self) -> None:
        """As `write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fall_silent(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _fall_silent(self, error: OSError) -> None:
        if error.errno not in _GONE:
            raise error
        # What is still buffered must go somewhere, or the interpreter's own flush at its end would fail.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block, stdout and stderr are `LastingStream`s."""
    with (
        contextlib.redirect_stdout(LastingStream(sys.stdout)),  # type: ignore[type-var]
        contextlib.redirect_stderr(LastingStream(sys.stderr)),  # type: ignore[type-var]
    ):
        yield
