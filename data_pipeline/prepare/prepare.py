"""`llmscale data prepare`: a corpus tokenised once, in parallel, on any number of processes and machines.

The corpus is divided into parts that do not depend on who works. Each finished part has a marker, so work that was
killed goes on with the parts that lack one, and whoever finds all markers joins the parts in their order.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.base.durable import json_bytes, read_json, replace_file, sync_folder, write_json
from data_pipeline.base.errors import UserError, writing
from data_pipeline.config import DataConfig
from data_pipeline.finite.cache import Counts
from data_pipeline.finite.format import IndexedDataset, bin_path, idx_path, places_path, token_dtype
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.prepare.deduplication import find_duplicates
from data_pipeline.prepare.parts import (
    PART_BYTES,
    SIDES,
    PartFiles,
    PartWorker,
    Plan,
    locked,
    make_plan,
    save_array,
    total_bytes,
)
from data_pipeline.prepare.workers import Report, Task, run_tasks
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import BadCounts, by_reason
from data_pipeline.tokenizer import Tokenizer, prepare_tokenizer

PLAN_FILE = "plan.json"
META_FILE = "meta.json"
QUARANTINE_FILE = "quarantine.jsonl"
TOKENIZER = "tokenizer"
LANES = 16
_OWN = (PLAN_FILE, META_FILE, TOKENIZER, "parts", "lock")


class Watcher:
    """Is told how the work goes; this one does nothing with it."""

    def stage(self, name: str, size: int) -> Report:
        """A stage begins that goes through `size` bytes; the result takes the bytes and tokens done."""
        return lambda done, tokens: None

    def note(self, message: str) -> None:
        """Something that takes time."""


@dataclass
class Outcome:
    """What a call of `prepare` left behind."""

    meta: dict[str, Any] | None
    """Contents of `meta.json` when everything is finished."""
    message: str
    """One sentence for the user."""
    warnings: list[str] = field(default_factory=list)
    """Sentences about bad records and damaged files; only where everything is finished."""


def prepare(
    config: DataConfig,
    out: str | Path,
    *,
    processes: int = 1,
    rank: int = 0,
    world: int = 1,
    merge_only: bool = False,
    watcher: Watcher | None = None,
    part_bytes: int = PART_BYTES,
    roles: tuple[str, ...] = (),
    begins_from: str | None = None,
) -> Outcome:
    """Tokenise all documents of `config.sources` into OUT: train.bin/.idx (and heldout.bin/.idx where `config.holdout`
    is above 0), each with `.places` (int64 pairs: number in `meta.json`'s list of files, position), tokenizer/,
    quarantine.jsonl (where there are bad records) and meta.json, which is written last.

    The order is that of the spans, and within them that of the documents; the bytes
    do not depend on processes, ranks or interruptions. A finished OUT is left as it is.

    Args:
        config: the data section; its cleaning and deduplication are applied.
        out: a new folder, or one in which the same was begun.
        processes: how many to use on this machine.
        rank: this call does the parts whose number is `rank` modulo `world`.
        world: number of such calls, on machines that share OUT. The one that finishes last joins the parts.
        merge_only: only join the parts.
        watcher: hears of the progress.
        part_bytes: least size of a part; the same in all calls.
        roles: special tokens that the tokenizer must have, as for `prepare_tokenizer`.
        begins_from: the imported model that is to be trained on this, as for `prepare_tokenizer`.

    Raises:
        UserError: unusable sources or tokenizer, an OUT of something else, or missing parts with `merge_only`.
        OSError: names the file that cannot be written.
        RuntimeError: a process died.
    """
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} is not below world {world}; number the ranks 0 to {world - 1}")
    out, watcher = Path(out), watcher or Watcher()
    _check_folder(out)
    # How a run would deal the documents to lanes must not decide what is written.
    config = config.model_copy(update={"lanes": LANES})
    corpus = Corpus.training(config)
    tokenizer = prepare_tokenizer(config, out / TOKENIZER, watcher.note, roles, begins_from)
    plan = make_plan(config, corpus, tokenizer, part_bytes)
    _begin(out, plan)
    meta = _finished(out, plan)
    if meta is not None:
        # Where the last call was killed between writing meta.json and this.
        _remove_parts(out)
        return _outcome(config, out, meta, "finished already")
    folder = out / "parts"
    with writing(folder):
        folder.mkdir(exist_ok=True)
    corpus.close()
    work = _Work(config, plan, out, folder, corpus, tokenizer, processes, range(rank, len(plan.parts), world), watcher)
    try:
        return _complete(work, merge_only)
    except (FileNotFoundError, UserError):
        # A call that had the same parts to do may have been faster: it removes them once it has joined them.
        meta = _finished(out, plan)
        if meta is None:
            raise
        _remove_parts(out)
        return _outcome(config, out, meta, "finished")


@dataclass
class _Work:
    """The parallel stages of one call."""

    config: DataConfig
    plan: Plan
    out: Path
    folder: Path
    corpus: Corpus
    tokenizer: Tokenizer
    processes: int
    own: range
    watcher: Watcher

    def deduplicate(self) -> bool:
        """Sign the own parts; when all are signed, make sure that the duplicates are known, else return False."""
        if all(part.duplicates.exists() for part in self._parts()):
            return True
        self._run("signing", lambda worker: worker.sign, lambda part: not part.signatures.exists())
        if not all(part.signatures.exists() for part in self._parts()):
            return False
        assert self.config.deduplication is not None
        with locked(self.out / "lock"):
            if not all(part.duplicates.exists() for part in self._parts()):
                self.watcher.note("looking for duplicates")
                signatures = [part.signatures for part in self._parts()]
                found = find_duplicates(signatures, self.config.deduplication)
                for part, duplicates in zip(self._parts(), found, strict=True):
                    save_array(part.duplicates, duplicates)
        return True

    def tokenize(self) -> None:
        """Tokenise the own parts that are not finished."""
        unfinished = set(self.unfinished())
        self._run("tokenizing", lambda worker: worker.tokenize, lambda part: part.number in unfinished)

    def unfinished(self) -> list[int]:
        """Parts of all ranks without a valid marker."""
        return [part.number for part in self._parts() if part.result(self.plan.digest) is None]

    def waiting(self, done: str, is_done: Callable[[PartFiles], bool]) -> str:
        """What the user should know while others are at work."""
        count = sum(map(is_done, self._parts()))
        return (
            f"{self.out}: the {len(self.own)} parts of this rank are {done}, {count} of all {len(self.plan.parts)} so"
            f" far; {'the rank that finishes last joins them' if done == 'finished' else 'run this rank again then'}"
        )

    def _parts(self) -> list[PartFiles]:
        return [PartFiles(self.folder, number) for number in range(len(self.plan.parts))]

    def _run(self, name: str, method: Callable[[PartWorker], Task], is_missing: Callable[[PartFiles], bool]) -> None:
        todo = [number for number in self.own if is_missing(PartFiles(self.folder, number))]
        report = self.watcher.stage(name, total_bytes(self.plan, self.own))
        report(total_bytes(self.plan, self.own) - total_bytes(self.plan, todo), 0)

        def open_task() -> Task:
            return method(PartWorker(self.config, self.plan, self.tokenizer, self.folder, self.corpus))

        run_tasks(todo, self.processes, open_task, report)


def _complete(work: _Work, merge_only: bool) -> Outcome:
    """Do the own parts, and join all where none is missing then.

    Raises:
        UserError: missing parts with `merge_only`, or what a reader found wrong.
        OSError: names the file that cannot be written; FileNotFoundError also where another call removes the parts.
    """
    signed = merge_only or work.config.deduplication is None or work.deduplicate()
    if signed and not merge_only:
        work.tokenize()
    missing = work.unfinished()
    # Another call may have joined the parts and removed them meanwhile.
    if not missing or _finished(work.out, work.plan) is not None:
        meta = _join_locked(work)
        return _outcome(work.config, work.out, meta, "finished")
    if merge_only:
        raise UserError(
            f"{work.out} lacks {len(missing)} of {len(work.plan.parts)} parts (the first is {missing[0]}), so they"
            f" cannot be joined; run `llmscale data prepare` without --merge first"
        )
    if not signed:
        return Outcome(None, work.waiting("signed", lambda part: part.signatures.exists()))
    return Outcome(None, work.waiting("finished", lambda part: part.number not in missing))


def _remove_parts(out: Path) -> None:
    shutil.rmtree(out / "parts", ignore_errors=True)


def _check_folder(out: Path) -> None:
    """Raise UserError where OUT is no folder, or one of other things."""
    if not out.exists() or (out / PLAN_FILE).exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file, but prepared data need a folder; name another place")
    strange = sorted(name for name in os.listdir(out) if name not in _OWN and not name.startswith("."))
    if strange:
        raise UserError(f"{out} holds {strange[0]!r} and no prepared data; name a new folder")


def _begin(out: Path, plan: Plan) -> None:
    """Write down what OUT is made of, or refuse one that is made of something else."""
    found = read_json(out / PLAN_FILE)
    if not isinstance(found, dict):
        write_json(out / PLAN_FILE, plan.made_of)
        return
    for name, value in plan.made_of.items():
        if found.get(name) != value:
            old, new = (str(made.get(name))[:60] for made in (found, plan.made_of))
            raise UserError(
                f"{out} was prepared with other {name} ({old}, now {new}); name a new folder, or set it back"
            )


def _finished(out: Path, plan: Plan) -> dict[str, Any] | None:
    """Contents of meta.json where everything is done; raises UserError where a finished file is damaged."""
    meta = read_json(out / META_FILE)
    if not isinstance(meta, dict) or meta.get("digest") != plan.digest:
        return None
    for side in SIDES:
        if meta[side] is not None:
            IndexedDataset(out / side)
    return meta


def _join_locked(work: _Work) -> dict[str, Any]:
    with locked(work.out / "lock"):
        # Another call may have joined the parts while this one waited.
        meta = _finished(work.out, work.plan)
        if meta is None:
            work.watcher.note(f"joining {len(work.plan.parts)} parts")
            meta = _join(work.config, work.plan, work.out, work.corpus, work.tokenizer)
        # Also those that this call made after another had removed them.
        _remove_parts(work.out)
    return meta


def _join(config: DataConfig, plan: Plan, out: Path, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Any]:
    """Concatenate the parts and write meta.json, last."""
    folder = out / "parts"
    dtype = token_dtype(tokenizer.vocab_size)
    parts = [PartFiles(folder, number) for number in range(len(plan.parts))]
    results = [part.result(plan.digest) or {} for part in parts]
    meta = _describe(config, plan, corpus, tokenizer, results)
    _require_documents(config, meta)
    sides = SIDES if config.holdout > 0 else SIDES[:1]
    for side in sides:
        with IndexedWriter(folder / side, dtype, places=True) as writer:
            for part in parts:
                writer.append(part.prefix(side))
        with writing(out / side):
            for path in (bin_path, places_path, idx_path):
                os.replace(path(folder / side), path(out / side))
            sync_folder(out)
    _write_quarantine(out / QUARANTINE_FILE, results)
    write_json(out / META_FILE, meta)
    return meta


def _describe(
    config: DataConfig, plan: Plan, corpus: Corpus, tokenizer: Tokenizer, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Contents of meta.json."""
    dropped: Counter[str] = Counter()
    totals = {side: Counts() for side in SIDES}
    by_source = [{side: Counts() for side in SIDES} for _ in config.sources]
    met, fruitful = BadCounts(), set[str]()
    for result in results:
        dropped.update(result["dropped"])
        # Markers of before say nothing of it, so that of a file that they have a part of nothing is known.
        met.add(BadCounts(**result.get("met", {})))
        fruitful.update(result.get("fruitful", met.by_file))
        for side, sources in result["counts"].items():
            for source, numbers in sources.items():
                totals[side].add(Counts(**numbers))
                by_source[int(source)][side].add(Counts(**numbers))
    return {
        "digest": plan.digest,
        "tokenizer": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "eos": tokenizer.special["eos"],
        **({"frame": plan.frame.key} if plan.frame is not None and plan.frame.key else {}),
        "pairs": plan.pairs,
        "train": asdict(totals["train"]),
        "heldout": asdict(totals["heldout"]) if config.holdout > 0 else None,
        "dropped": dict(sorted(dropped.items())),
        "met": asdict(met),
        "fruitless": sorted(met.by_file.keys() - fruitful),
        "sources": [
            {**source.model_dump(exclude_defaults=True), **{side: asdict(numbers[side]) for side in SIDES}}
            for source, numbers in zip(config.sources, by_source, strict=True)
        ],
        "files": [file.path for file in corpus.files],
    }


def _require_documents(config: DataConfig, meta: dict[str, Any]) -> None:
    """Raise UserError where a source gave no document, which is a mistake unless all of them repeat others."""
    for number, source in enumerate(meta["sources"]):
        if any(source[side]["documents"] for side in SIDES):
            continue
        if config.deduplication is None or not any(meta[side]["documents"] for side in SIDES if meta[side]):
            dropped = by_reason(meta["dropped"]) or "nothing, since its files are empty"
            raise UserError(
                f"data.sources[{number}] holds no text: none of its records was kept (of all sources were dropped or"
                f" repaired: {dropped}); correct the source, or leave it out"
            )


def _outcome(config: DataConfig, out: Path, meta: dict[str, Any], state: str) -> Outcome:
    """What to say of an OUT with everything done."""
    # Those of before say nothing of it.
    met = BadCounts(**meta.get("met", {}))
    warnings = met.warnings(config.bad_record_warning, f"; they are listed in {out / QUARANTINE_FILE}")
    for path in meta.get("fruitless", []):
        warnings.append(f"warning: no record of {path} was kept: {by_reason(met.by_file[path])}")
    for number, source in enumerate(meta["sources"]):
        if not any(source[side]["documents"] for side in SIDES):
            warnings.append(f"warning: data.sources[{number}] gave no document: all of them repeat others")
    return Outcome(meta, f"{out} is {state}: {_numbers(meta)}", warnings)


def _write_quarantine(path: Path, results: list[dict[str, Any]]) -> None:
    """A JSON line for each bad record, where there are any."""
    lines = [json_bytes(record, indent=None) for result in results for record in result["bad"]]
    if lines:
        replace_file(path, b"".join(lines))


def _numbers(meta: dict[str, Any]) -> str:
    parts = [
        f"{meta[side]['documents']:,} documents and {meta[side]['tokens']:,} tokens in {side}"
        for side in SIDES
        if meta[side] is not None
    ]
    dropped = by_reason(meta["dropped"])
    return "; ".join(parts) + (f"; dropped or repaired: {dropped}" if dropped else "")
