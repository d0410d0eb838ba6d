"""Chat templates rendered in a process of their own, which is ended where a template takes too long."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.reading import template_worker

SECONDS = 5.0
"""Longest that a template may take; published ones take milliseconds."""
MEMORY = 1 << 29
"""Bytes of address space that its process may have."""
CHARACTERS = 1 << 24
"""Longest text that it may give: more than any context has room for."""
_START_SECONDS = 60.0
Answer = dict[str, Any]


class TemplateFault(UserError):
    """A template that gave no text."""

    refusal = False
    """The template itself refused the dialogue (`raise_exception`), and might take another."""


class RecordFault(Exception):
    """A template of a task that gave no value for a record."""

    def __init__(self, answer: Answer) -> None:
        self.record: int | None = answer.get("record")
        """Place of the record among those that were given; None where it is not known."""
        self.template: str | None = answer.get("template")
        """Name of the template, likewise."""
        self.undefined = answer.get("error") == "undefined"
        """It names what is not there."""
        super().__init__(_explained(answer, "the record"))


class Renderer:
    """A process that renders templates: started for the first one, and again after one that it had to be ended for. It
    may be used from several threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        """The process that started it: after a fork it is not the child's."""
        self._pending = b""
        self._lock = threading.Lock()

    def render(self, source: str, variables: Mapping[str, Any], origin: str, date: str | None = None) -> str:
        """The text that a template makes of its variables; as `render_each`."""
        return self.render_each(source, [variables], origin, date)[0]

    def render_each(
        self, source: str, each: Sequence[Mapping[str, Any]], origin: str, date: str | None = None
    ) -> list[str]:
        """The texts that a template makes of some variables, which are JSON, within the limits of one all together.

        Args:
            origin: what messages call the template.
            date: what it takes for today, as `YYYY-MM-DD`; None: today.

        Raises:
            TemplateFault: the template is no valid jinja, refuses the variables, fails, or exceeds a limit.
            UserError: jinja2 is too old.
            ModuleNotFoundError: jinja2 is not installed.
        """
        answer = self._answer({"source": source, "each": list(each), "date": date})
        if "texts" in answer and not any(map(_has_surrogate, answer["texts"])):
            return answer["texts"]  # type: ignore[no-any-return]
        fault = TemplateFault(f"{origin} {_explained(answer)}")
        fault.refusal = answer.get("error") in ("refused", "undefined")
        raise fault

    def values(
        self, templates: list[tuple[str, str, bool]], records: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The values of a task's templates for some records, within the limits of one chat template all together.

        Args:
            templates: (name, source, whole) each: where `whole` is set and the source is one expression, its value is
                given and not its text. Templates behind one named `let.x` see its value as `x`.
            records: JSON objects.

        Raises:
            RecordFault: a template gives no value for a record.
            UserError: jinja2 is too old.
        """
        answer = self._answer({"templates": templates, "records": list(records)})
        if "values" not in answer:
            raise RecordFault(answer)
        rows: list[dict[str, Any]] = answer["values"]
        for number, row in enumerate(rows):
            for name, value in row.items():
                if _has_surrogate(json.dumps(value, ensure_ascii=False)):
                    raise RecordFault({"text": "", "record": number, "template": name})
        return rows

    def matches(self, pattern: str, lines: list[str], origin: str) -> list[bool]:
        """Whether a match of a regular expression begins at each of some lines.

        Raises:
            TemplateFault: the pattern is none, or takes too long; `origin` is what messages call it.
        """
        answer = self._answer({"pattern": pattern, "lines": lines})
        if "matches" not in answer:
            raise TemplateFault(f"{origin} {_explained(answer, 'the lines')}")
        return answer["matches"]  # type: ignore[no-any-return]

    def _answer(self, request: dict[str, Any]) -> Answer:
        line = json.dumps(request | {"seconds": SECONDS, "characters": CHARACTERS}) + "\n"
        with self._lock:
            process = self._started()
            try:
                answer = self._ask(process, line.encode(), SECONDS)
            except BaseException:
                self._end()  # what it has still to say belongs to no later request
                raise
            if answer.get("error") in ("time", "died"):
                self._end()
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self._end()
        # -I and -S: nothing of the environment, the user or this folder, and a quick start.
        command = [sys.executable, "-I", "-S", template_worker.__file__, str(MEMORY), *_library_folders()]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._process, self._owner = process, os.getpid()
        version = self._ask(process, b"", _START_SECONDS).get("version")
        if version is None or template_worker.is_old(version):
            self._end()
            if version is None:
                raise RuntimeError("the process that renders chat templates did not start")
            oldest = ".".join(map(str, template_worker.OLDEST))
            raise UserError(
                f"jinja2 {version} is installed, whose sandbox chat templates can leave; install jinja2 {oldest} or"
                f" newer"
            )
        return process

    def _ask(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> Answer:
        """The answer to a request; an `error` where there is none in time, or the process ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        waiting = select.poll()
        waiting.register(process.stdout, select.POLLIN)
        parts: list[bytes] = []
        while b"\n" not in self._pending:
            parts.append(self._pending)
            if not waiting.poll(max(deadline - time.monotonic(), 0.0) * 1000):
                return {"error": "time"}
            self._pending = os.read(process.stdout.fileno(), 1 << 16)
            if not self._pending:
                return {"error": "died"}
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(b"".join([*parts, line]))  # type: ignore[no-any-return]

    def _end(self) -> None:
        process, self._process, self._pending = self._process, None, b""
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def has_jinja() -> bool:
    """Whether jinja2 is installed."""
    return importlib.util.find_spec("jinja2") is not None


def _library_folders() -> list[str]:
    """Where jinja2 and what it needs are.

    Raises:
        ModuleNotFoundError: they are not installed.
    """
    found = []
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{name} is not installed")
        found.append(str(Path(spec.origin).parents[1]))
    return found


def _has_surrogate(text: str) -> bool:
    """Whether it holds half a character, which no tokenizer takes."""
    return re.search("[\ud800-\udfff]", text) is not None


def _explained(answer: Answer, subject: str = "the dialogue") -> str:
    """What a template does that gave no text of a subject, and the fix."""
    if "text" in answer or "texts" in answer:
        return "makes a text that is no valid Unicode; repair it"
    reason = " ".join(answer.get("reason", "").split()).rstrip(".")[:300]
    return {
        "syntax": f"is no valid jinja ({reason}); repair it",
        "refused": f"refuses {subject}: {reason}; change it",
        "undefined": f"refuses {subject}: {reason}; change it",
        "failed": f"fails on {subject}: {reason}; repair it",
        "time": f"takes longer than {SECONDS:g} s, as an endless loop would; repair it",
        "memory": f"needs more than {MEMORY >> 20} MiB of memory; repair it",
        "length": f"makes a text of more than {CHARACTERS:,} characters; repair it",
        "died": f"ends the process that renders it, as one does that needs more than {MEMORY >> 20} MiB of memory;"
        " repair it",
    }[answer["error"]]


RENDERER = Renderer()
"""That of this process."""
atexit.register(RENDERER.close)
