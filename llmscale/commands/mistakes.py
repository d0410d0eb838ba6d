"""What the command line says of mistakes and faults, and which exit codes they have."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

import click

from data_pipeline.base.errors import FULL, UserError
from llmscale.commands.speech import complain
from llmscale.distributed.exit_codes import FAILED, INTERRUPTED, USER_MISTAKE
from llmscale.distributed.ranks import shown_rank

_BARRED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO),
)


@contextlib.contextmanager
def mistakes_explained() -> Iterator[None]:
    """One sentence on stderr instead of a traceback, and the exit code, where the cause is known."""
    try:
        yield
    except UserError as error:
        if shown_rank() == 0 or not error.everywhere:
            complain(str(error))
        sys.exit(USER_MISTAKE)
    except click.UsageError as error:
        _complain_of_usage(error)
        sys.exit(USER_MISTAKE)
    except OSError as error:
        reason = error.strerror
        if error.errno in FULL:
            complain(f"cannot write {error.filename or 'the run'}: {reason}; free some space, then start again")
            sys.exit(FAILED)
        if error.errno == errno.ENOENT and error.filename is None:  # of os.getcwd
            complain("the working directory does not exist any more; change to one that does")
            sys.exit(USER_MISTAKE)
        if error.errno in _BARRED and error.filename is not None:
            complain(f"cannot use {error.filename}: {reason}; make it accessible, or name another place")
            sys.exit(USER_MISTAKE)
        raise
    except KeyboardInterrupt:
        if shown_rank() == 0:
            complain("interrupted")
        sys.exit(INTERRUPTED)
    except RuntimeError as error:
        if type(error).__name__ not in ("CheckpointError", "LostRankError", "DivergedError"):
            raise
        if not getattr(error, "told", False) and (shown_rank() == 0 or type(error).__name__ != "DivergedError"):
            # Every rank raises a DivergedError alike.
            complain(str(error))
        sys.exit(FAILED)


def _complain_of_usage(error: click.UsageError) -> None:
    """What click says of an option or argument, as one sentence."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        raise error  # which is the help, and no mistake
    if shown_rank():
        return  # every rank has the same command line
    near = getattr(error, "possibilities", None)  # which click would put into a sentence of its own
    message = " ".join((error.message if near else error.format_message()).split()).removesuffix(".")
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    help_ = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
    complain(f"{message[:1].lower()}{message[1:]}{hint}{help_}")
