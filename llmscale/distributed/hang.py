"""Ranks that make no progress: a thread of each notices, and rank 0 judges who lags.

Each rank that has stood still for too long writes its Python stacks to its log and tells rank 0 where it is; rank 0
asks the others. Whoever gives no answer is stopped, or its machine hangs; else those lag that are behind the others, or
those that wait for nobody while the others do.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from llmscale.distributed.meeting import spans
from llmscale.distributed.watch import Watch

MOST_WAIT = 5.0
"""Seconds that rank 0 waits for the others to say where they are; less where the limit is short."""
_WAITS_IN = ("torch/distributed/", "deepspeed/comm/")
"""Files whose functions wait for other ranks."""
_PROJECT = ("llmscale", "data_pipeline")
_DEPTH = 12
"""Innermost frames in which a wait is looked for."""


@dataclass(frozen=True)
class Standing:
    """Where a rank stands that makes no progress."""

    step: int
    """The step that it is in, counted from 1."""
    place: int
    """Of its phase in the step."""
    phase: str
    waits: bool
    """Whether it waits for other ranks, as far as its stack tells."""
    frame: str
    """The innermost line of the project that it is in."""

    @property
    def position(self) -> tuple[int, int]:
        return self.step, self.place

    def __str__(self) -> str:
        return f"in {self.phase} of step {self.step} ({self.frame})"


def standing(step: int, place: int, phase: str) -> Standing:
    """Of this process, whose main thread is looked at."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = list(_outwards(frame))
    waits = any(name in each.f_code.co_filename for each in frames[:_DEPTH] for name in _WAITS_IN)
    inner = next((each for each in frames if _of_project(each)), frames[0] if frames else None)
    return Standing(step, place, phase, waits, _line(inner))


def _outwards(frame: FrameType | None) -> Iterable[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _of_project(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _PROJECT


def _line(frame: FrameType | None) -> str:
    if frame is None:
        return "unknown"
    path = Path(frame.f_code.co_filename)
    module = str(frame.f_globals.get("__name__", ""))
    name = "/".join(path.parts[-1 - module.count(".") :]) if _of_project(frame) else path.name
    return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"


def lagging(standings: dict[int, Standing], ranks: int) -> list[int]:
    """The ranks that the others wait for, as far as one can tell; none where all stand alike."""
    silent = [rank for rank in range(ranks) if rank not in standings]
    if silent:
        return silent
    first = min(each.position for each in standings.values())
    behind = [rank for rank, each in sorted(standings.items()) if each.position == first]
    busy = [rank for rank in behind if not standings[rank].waits]
    return busy if 0 < len(busy) < ranks else behind if len(behind) < ranks else []


def verdict(standings: dict[int, Standing], hosts: list[str], seconds: float) -> str:
    """A sentence that says which ranks lag and where, and where the others are."""
    late = lagging(standings, len(hosts))
    said = []
    for rank in late:
        where = str(standings[rank]) if rank in standings else "gives no answer (it is stopped, or its machine hangs)"
        said.append(f"rank {rank} on {hosts[rank]} {'is ' if rank in standings else ''}{where}")
    others: dict[str, list[int]] = {}
    for rank in sorted(set(standings) - set(late)):
        others.setdefault(str(standings[rank]), []).append(rank)
    who = "; ".join(said) if late else "no rank lags behind the others"
    rest = "; ".join(
        f"rank(s) {spans(ranks)} {'are' if len(ranks) > 1 else 'is'} {where}" for where, ranks in others.items()
    )
    return f"no progress for {seconds:.1f} s: {who}" + (f"; {rest}" if rest else "")


def _without_lead(rank: int, own: Standing, host: str, seconds: float) -> str:
    """What a rank says where rank 0, which hears of the others, says nothing."""
    silent = f"rank 0 on {host} gives no answer (it is stopped, or its machine hangs)"
    return f"no progress for {seconds:.1f} s: {silent}; rank {rank} is {own}"


class HangWatch:
    """Looks whether this rank makes progress, in a thread. Use as a context manager."""

    def __init__(
        self,
        rank: int,
        watch: Watch | None,
        hosts: list[str],
        *,
        progress: Callable[[], object],
        limit: Callable[[float], float | None],
        where: Callable[[], Standing],
        log: IO[str] | None,
        end: Callable[[str, list[int], bool], None],
    ) -> None:
        """
        Args:
            watch: of the group; None for a lone process.
            hosts: of each rank.
            progress: anything that is other than before once this rank has got further.
            limit: how long it may stand still, given the longest time that it has so far; None: as long as it likes.
            where: where this rank stands.
            log: gets the Python stacks.
            end: ends the process, given the verdict, the ranks that lag, and whether it comes from rank 0 (or from
                this rank itself, which then is the first to know).
        """
        self._rank, self._watch, self._hosts = rank, watch, hosts
        self._progress, self._limit, self._where, self._log, self._end = progress, limit, where, log, end
        self._longest = 0.0
        self._standings: dict[int, Standing] = {}
        self._asked = threading.Event()
        self._verdict: tuple[str, list[int]] | None = None
        self._judged = threading.Event()
        self._closed = threading.Event()

    def __enter__(self) -> HangWatch:
        if self._watch is not None:
            self._watch.on_message = self._hear
        threading.Thread(target=self._look, name="hang-watch", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        seen, since, tick = self._progress(), time.monotonic(), time.monotonic()
        while True:
            limit = self._limit(self._longest)
            pause = 1.0 if limit is None else min(1.0, limit / 20)
            self._asked.wait(pause)
            if self._closed.is_set():
                return
            now, current = time.monotonic(), self._progress()
            if now - tick > pause + max(2.0, (limit or 0) / 4):
                since = now  # this process was stopped itself, or its machine
            tick = now
            if current != seen:
                self._longest = max(self._longest, now - since)
                seen, since = current, now
            if self._asked.is_set() or (limit is not None and now - since > limit):
                self._conclude(now - since, limit or MOST_WAIT)
                return
            self._dump_later(limit)

    def _dump_later(self, limit: float | None) -> None:
        """Also where C code holds the interpreter, so that this thread stands still too, the stacks are written."""
        if self._log is not None and limit is not None:
            faulthandler.dump_traceback_later(limit, file=self._log)

    def _conclude(self, seconds: float, limit: float) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._dump(seconds)
        own = self._standings[self._rank] = self._where()
        wait = min(MOST_WAIT, limit / 4)
        if self._rank == 0:
            text, late = self._judge(seconds, wait)
        else:
            assert self._watch is not None
            self._watch.send({"standing": asdict(own)})
            self._judged.wait(2 * wait)
            text, late = self._verdict or (_without_lead(self._rank, own, self._hosts[0], seconds), [0])
        if not self._closed.is_set():
            self._end(text, late, self._verdict is None)

    def _judge(self, seconds: float, wait: float) -> tuple[str, list[int]]:
        """Of rank 0: ask all, and tell all what comes of it."""
        if self._watch is not None:
            self._watch.send({"ask": True})
            end = time.monotonic() + wait
            while len(self._standings) < len(self._hosts) and time.monotonic() < end:
                time.sleep(0.05)
        standings = dict(self._standings)
        text, late = verdict(standings, self._hosts, seconds), lagging(standings, len(self._hosts))
        if self._watch is not None:
            self._watch.send({"verdict": text, "lagging": late})
        return text, late

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        """What another rank says, in the thread of the watch."""
        if "standing" in message:
            self._standings[rank] = Standing(**message["standing"])
            self._asked.set()
        elif "ask" in message:
            self._asked.set()
        elif "verdict" in message:
            self._verdict = str(message["verdict"]), [int(each) for each in message["lagging"]]
            self._judged.set()
            self._asked.set()

    def _dump(self, seconds: float) -> None:
        if self._log is None:
            return
        where = self._where()
        print(f"no progress for {seconds:.1f} s, {where}; the Python stacks of rank {self._rank}:", file=self._log)
        self._log.flush()
        faulthandler.dump_traceback(file=self._log, all_threads=True)
