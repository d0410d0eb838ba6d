"""The process in which chat templates are compiled and rendered; run by its path, with the standard library and jinja2.

Templates come from the internet. Beside jinja2's sandbox they are held by what the operating system enforces: limits
on memory and processor time, and the parent, which ends this process when its time is up. A line of JSON on the input
is a request (`source`, `variables`, `seconds`, `characters`), a line on the output its answer: `text`, or `error` with
the kind of failure and what is to say about it.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from datetime import datetime
from typing import Any

OLDEST = (3, 1, 6)
"""jinja2 before it has known ways out of its sandbox; transformers refuses it too."""


def main() -> None:
    """Answer requests until the input ends. The arguments are the bytes of memory that may be used, and the folders of
    jinja2 and of what it needs."""
    sys.path[:0] = sys.argv[2:]
    import jinja2

    _say({"version": jinja2.__version__})
    if is_old(jinja2.__version__):
        return
    environment = make_environment()
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_AS)[1]))
    compiled: dict[str, Any] = {}
    for line in sys.stdin:
        _say(_answer(json.loads(line), environment, compiled))


def make_environment() -> Any:
    """jinja2's environment with the settings, extensions and functions that transformers gives it for chat templates
    (its `chat_template_utils`)."""
    import jinja2
    import jinja2.ext
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):  # type: ignore[name-defined]
        """`{% generation %}`: marks what the assistant says, for training; here only its text counts. As a call of its
        own it has a scope of its own: what is set within is not seen after it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Any) -> str:
            return caller()

    class Namespace(jinja2.utils.Namespace):  # type: ignore[name-defined]
        """Without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args  # as jinja2's: `namespace(self=1)` is allowed
            given = dict(*rest, **kwargs)
            for name in given:
                _require_public(name)
            jinja2.utils.Namespace.__init__(self, given)

        def __setitem__(self, name: str, value: Any) -> None:
            _require_public(name)
            super().__setitem__(name, value)

    class Dictionary:
        """`dict`, of which nothing but calls can be reached."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args, **kwargs)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_now, dict=Dictionary(), namespace=Namespace)
    return environment


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    import jinja2

    raise jinja2.TemplateRuntimeError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


def _require_public(name: Any) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace of a chat template has no {name!r}, which begins with an underscore")


def _answer(request: dict[str, Any], environment: Any, compiled: dict[str, Any]) -> dict[str, str]:
    import jinja2

    used = resource.getrusage(resource.RUSAGE_SELF)
    # Where the parent is gone, nothing else ends an endless loop.
    seconds = int(used.ru_utime + used.ru_stime + request["seconds"]) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    source = request["source"]
    try:
        if source not in compiled:
            compiled.clear()
            compiled[source] = environment.from_string(source)
        pieces = compiled[source].generate(**request["variables"])
        return {"text": "".join(_bounded(pieces, request["characters"]))}
    except jinja2.TemplateSyntaxError as error:
        return {"error": "syntax", "reason": f"{error.message}, line {error.lineno}"}
    except jinja2.TemplateError as error:
        return {"error": "refused", "reason": str(error)}
    except (MemoryError, _TooLong) as error:
        return {"error": "memory" if isinstance(error, MemoryError) else "length"}
    except Exception as error:  # whatever a template's own arithmetic and calls raise
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, RecursionError):
            reason = "it is nested too deeply or calls itself without end"
        return {"error": "failed", "reason": reason}


class _TooLong(Exception):
    """The text has more characters than it may."""


def _bounded(pieces: Any, characters: int) -> Any:
    for piece in pieces:
        characters -= len(piece)
        if characters < 0:
            raise _TooLong
        yield piece


def is_old(version: str) -> bool:
    """Whether that jinja2 is older than `OLDEST`."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < OLDEST


def _say(answer: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
