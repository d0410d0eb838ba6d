"""The one exception for mistakes that the user can correct, and errors of writing that name the file."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk, a quota or a file that can take no more."""


class UserError(ValueError):
    """A mistake in the config, the files or the command line.

    The message is one sentence that names the field or file, both values and the fix. The command line
    prints it without a traceback and exits with code 2.
    """

    everywhere = True
    """Every rank meets the same mistake, so that rank 0 alone reports it; set to False where only one rank does."""


def setting(where: str, name: str) -> str:
    """What a message calls a setting of a source at a place of the config, or of the command line."""
    return f"--{name.replace('_', '-')}" if where.startswith("--") else f"{where}.{name}"


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line, with what caused it where that says something else."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if error.__cause__ is None:
        return line
    cause = first_line(error.__cause__)
    return line if cause in line else f"{line} ({cause})"


@contextlib.contextmanager
def about(what: object) -> Iterator[None]:
    """Mistakes that are found within the block say what they are about, such as a file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Errors of the operating system within the block, such as a full disk, name `path`, which write() does not."""
    try:
        yield
    except OSError as error:
        # numpy reports a short write without any errno.
        number = error.errno or errno.ENOSPC
        raise OSError(number, error.strerror or os.strerror(number), error.filename or str(path)) from None
