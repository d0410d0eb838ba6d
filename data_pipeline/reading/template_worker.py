"""The process in which templates are compiled and rendered; run by its path, with the standard library and jinja2.

Templates come from the internet. Beside jinja2's sandbox they are held by what the operating system enforces: limits
on memory and processor time, and the parent, which ends this process when its time is up. A line of JSON on the input
is a request, a line on the output its answer. Every request has `seconds` and `characters`, and is one of

    source, each          a chat template and lists of variables that it is rendered with; the answer has `texts`. With
                          a `date` that is what the template takes for today
    templates, records    templates of a task, (name, source, whole) each, rendered with each record; the answer has
                          `values`, a mapping for each record. Where `whole` is set and the source is one expression,
                          its value is given and not its text. Templates behind one named `let.x` see its value as `x`
    pattern, lines        the answer has `matches`: at which lines a match of the regular expression begins

or, in place of that, `error` with the kind of failure, and `reason`, `record` and `template` as far as they are known.
"""

from __future__ import annotations

import hashlib
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
    environments = Environments()
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin:
        _say(_answer(json.loads(line), environments))


class Environments:
    """What templates are compiled by, and those that were compiled last."""

    def __init__(self) -> None:
        self._chat = make_environment()
        self._task = make_task_environment()
        self._compiled: dict[tuple[str, bool], Any] = {}

    def chat(self, source: str) -> Any:
        """A chat template."""
        return self._kept((source, False), self._chat.from_string)

    def task(self, source: str, whole: bool) -> Any:
        """What gives the value of a task's template from its variables."""
        return self._kept((source, whole), lambda source: _evaluator(self._task, source, whole))

    def _kept(self, key: tuple[str, bool], make: Any) -> Any:
        if key not in self._compiled:
            if len(self._compiled) >= _KEPT:
                self._compiled.clear()
            self._compiled[key] = make(key[0])
        return self._compiled[key]


_KEPT = 200
"""Most templates that are kept compiled."""


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


def make_task_environment() -> Any:
    """jinja2's environment for templates of tasks: they see the record's fields and nothing else, and what is missing,
    null, or no text is an error where a text is made of it."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_printed
    )
    environment.globals = {"range": environment.globals["range"]}
    environment.filters.update(regex_replace=_regex_replace, surround=_surround, digest=_digest)
    return environment


def _printed(value: Any) -> Any:
    import jinja2

    if value is None or isinstance(value, dict | list | tuple):
        what = "null" if value is None else "an object" if isinstance(value, dict) else "a list"
        raise jinja2.TemplateRuntimeError(f"a text is made of {what}")
    return value


def _regex_replace(text: str, pattern: str, replacement: str = "", count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def _surround(texts: list[str], before: str = "", after: str = "") -> list[str]:
    """Each of some texts with one before and one after it."""
    return [f"{before}{text}{after}" for text in texts]


def _digest(text: str) -> str:
    """16 hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _evaluator(environment: Any, source: str, whole: bool) -> Any:
    """A function of a task's variables and of the most characters, which gives a template's value or text."""
    from jinja2 import nodes

    body = environment.parse(source).body
    single = len(body) == 1 and isinstance(body[0], nodes.Output) and len(body[0].nodes) == 1
    if not (whole and single) or isinstance(body[0].nodes[0], nodes.TemplateData):
        template = environment.from_string(source)
        return lambda variables, characters: "".join(_bounded(template.generate(**variables), characters))
    expression = source.strip()[2:-2].removeprefix("-").removeprefix("+").removesuffix("-").removesuffix("+")
    compiled = environment.compile_expression(expression, undefined_to_none=False)

    def value(variables: dict[str, Any], characters: int) -> Any:
        text = json.dumps(_defined(compiled(**variables)), default=_as_list)
        if len(text) > 6 * characters + 100:  # JSON spells a character by six at most
            raise _TooLong
        return json.loads(text)

    return value


def _defined(value: Any) -> Any:
    import jinja2

    if isinstance(value, jinja2.Undefined):
        str(value)  # raises what is said of it
    return value


def _as_list(value: Any) -> Any:
    return list(_defined(value))  # such as what `map` gives


def _values(request: dict[str, Any], environments: Environments) -> dict[str, Any]:
    """The values of templates for records, up to the first that fails."""
    rows: list[dict[str, Any]] = []
    for number, record in enumerate(request["records"]):
        variables, row = dict(record), {}
        for name, source, whole in request["templates"]:
            answer = _guarded(lambda s=source, w=whole, v=variables: environments.task(s, w)(v, request["characters"]))
            if "error" in answer:
                return {**answer, "record": number, "template": name}
            row[name] = answer["value"]
            if name.startswith("let."):
                variables[name[len("let.") :]] = answer["value"]
        rows.append(row)
    return {"values": rows}


def _matches(request: dict[str, Any]) -> list[bool]:
    return [re.match(request["pattern"], line) is not None for line in request["lines"]]


def _answer(request: dict[str, Any], environments: Environments) -> dict[str, Any]:

    used = resource.getrusage(resource.RUSAGE_SELF)
    # Where the parent is gone, nothing else ends an endless loop.
    seconds = int(used.ru_utime + used.ru_stime + request["seconds"]) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    if "templates" in request:
        return _values(request, environments)
    if "pattern" in request:
        answer = _guarded(lambda: _matches(request))
        return {"matches": answer["value"]} if "value" in answer else answer

    def texts() -> list[str]:
        date = request.get("date")
        today = {"strftime_now": datetime.fromisoformat(date).strftime} if date else {}
        template = environments.chat(request["source"])
        found: list[str] = []
        for variables in request["each"]:
            left = request["characters"] - sum(map(len, found))
            found.append("".join(_bounded(template.generate(**{**variables, **today}), left)))
        return found

    answer = _guarded(texts)
    return {"texts": answer["value"]} if "value" in answer else answer


def _guarded(evaluate: Any) -> dict[str, Any]:
    """The `value` that is evaluated, or the `error`."""
    import jinja2

    try:
        return {"value": evaluate()}
    except jinja2.TemplateSyntaxError as error:
        return {"error": "syntax", "reason": f"{error.message}, line {error.lineno}"}
    except jinja2.TemplateError as error:
        kind = "undefined" if isinstance(error, jinja2.UndefinedError) else "refused"
        return {"error": kind, "reason": str(error)}
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


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
