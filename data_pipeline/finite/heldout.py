"""Held-out documents as a finite set of samples, tokenised once and memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.base.durable import parse_json, read_file, temporary_folder
from data_pipeline.base.errors import UserError, writing
from data_pipeline.batch import Batch, make_batch
from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.cache import tokenized
from data_pipeline.finite.format import IndexedDataset, token_dtype
from data_pipeline.finite.prefixes import prepared_prefixes, require_frame
from data_pipeline.finite.samples import fill_rows, make_view
from data_pipeline.finite.shards import Shards
from data_pipeline.finite.writer import IndexedWriter
from data_pipeline.objectives import Objective, build_objective
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.packing import Sample
from data_pipeline.sources.corpus import Corpus
from data_pipeline.sources.readers import BadCounts
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.frame import Frame, plain_frame

PREFIX = "documents"


@dataclass
class _Size:
    """How much there is to predict, apart from what the objective leaves out."""

    documents: int = 0
    tokens: float = 0
    bytes: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    met: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside; nothing in sets of before."""
    check: str = ""
    """SHA-256 of the rest."""


def _check_of(size: _Size) -> str:
    rest = {**asdict(size), "check": ""}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _read_size(directory: Path) -> _Size:
    return _Size(**parse_json(read_file(directory / "meta.json")))


def _is_whole(directory: Path) -> bool:
    """Whether an evaluation set is as it was written; of one of before it is only known that it can be read."""
    try:
        size = _read_size(directory)
        if size.check != (_check_of(size) if size.files else ""):
            return False
        IndexedDataset(directory / PREFIX)
        return all(_sha256(directory / name) == digest for name, digest in size.files.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


class EvaluationSet:
    """Samples of an objective over the documents in their order. For causal models that is the stream eos, document,
    eos, document, eos, ...: every token of every document, and the eos after it, is a target exactly once. An imported
    model reads each document as its own conventions have it: `<s>`, document, eos, `<s>`, document, eos, ..., where no
    `<s>` is a target; or nothing in front, so that the very first token is none."""

    def __init__(self, directory: str | Path, objective: Objective, seed: int) -> None:
        """Maps what `build_evaluation_set` wrote; `seed` decides what the objective draws."""
        self.directory = Path(directory)
        self._view = make_view(Shards([self.directory / PREFIX]), objective, seed)
        self.objective = objective
        """What is made of the documents."""
        size = _read_size(self.directory)
        self.documents = size.documents
        """Number of documents; a pair is one."""
        self.tokens = size.tokens
        """Tokens of the documents (of pairs: of their targets), an eos after each included, what begins them not."""
        self.bytes = size.bytes
        """UTF-8 bytes of the same."""
        self.dropped = size.dropped
        """Documents left out or repaired, by reason."""
        self.met = BadCounts(**size.met)
        """What was wrong with the records that they are from."""
        self.annotate: Callable[[Batch], Batch] = lambda batch: batch
        """Adds to each batch what is known of its samples besides."""
        self.remade = False
        """Whether a damaged one stood in its place."""

    def __len__(self) -> int:
        """Number of samples; the last one may be partly padding."""
        return len(self._view)

    def samples(self, indices: Sequence[int]) -> list[Sample]:
        """What rows are made of, by number, for a look at them."""
        return [self._view.sample(index, index) for index in indices]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Samples by number; a number that is -1 or not below `len` gives fill of weight 0 (sample id -1)."""
        real = [index for index in indices if 0 <= index < len(self)]
        shown = real or [0]
        arrays = self.objective.arrays([self._view.sample(index, index) for index in shown], shown)
        rows = fill_rows(arrays, len(real), len(indices) - len(real))
        # Fill stands where it was asked for.
        order = np.empty(len(indices), dtype=np.int64)
        kept = np.array([0 <= index < len(self) for index in indices], dtype=bool)
        order[kept], order[~kept] = np.arange(len(real)), np.arange(len(real), len(indices))
        numbers = np.where(kept, np.array(indices, dtype=np.int64), -1)
        return self.annotate(make_batch({name: array[order] for name, array in rows.items()}, numbers))


def build_evaluation_set(
    config: DataConfig,
    tokenizer: Tokenizer,
    cache: str | Path,
    *,
    objective: ObjectiveConfig = CausalObjective(),  # noqa: B008
    seed: int = 0,
    where: str = "data.evaluation",
) -> EvaluationSet:
    """The documents to evaluate on, tokenised once under `cache` in a folder named by a digest of its contents.

    Args:
        config: held out are what `config.holdout` sets aside and the documents of `config.evaluation`.
        tokenizer: has the roles that the objective needs.
        cache: where to keep it; several processes may build the same one at once.
        objective: what the model is to predict. Documents are never rearranged to fill in their middle.
        seed: decides what the objective draws.
        where: what messages call `config.evaluation`.

    Raises:
        UserError: there are no such documents, or a file cannot be read.
    """
    made = _objective(config, tokenizer, objective, seed)
    if config.holdout > 0:
        made.require(config.sources, "data.sources")
    made.require(config.evaluation, where)
    frame = made.frame or plain_frame(tokenizer)
    parts = _heldout_parts(config, tokenizer, where)
    for part in parts:
        if isinstance(part, _Tokens):
            require_frame(part.prefixes, tokenizer, made.frame)
    lead = made.overlap == 1
    key = hashlib.sha256(f"{tokenizer.digest} {lead} {made.config.stored.key}{made.form}".encode())
    if frame != plain_frame(tokenizer):
        key.update(repr(frame).encode())
    for part in parts:
        key.update(part.digest.encode())
    directory = Path(cache) / f"evaluation-{key.hexdigest()[:16]}"
    damaged = directory.exists() and not _is_whole(directory)
    if damaged:
        away = temporary_folder(directory.parent, f".{directory.name}-")
        directory.rename(away / directory.name)
        shutil.rmtree(away, ignore_errors=True)
    if not directory.exists():
        fix = f"{'raise data.holdout or ' if config.holdout else ''}name other files in {where}"
        _write(parts, tokenizer, directory, frame if lead else frame._replace(lead=()), made, fix)
    opened = EvaluationSet(directory, made, seed)
    opened.remade = damaged
    return opened


def open_evaluation_set(
    directory: Path, config: DataConfig, tokenizer: Tokenizer, *, objective: ObjectiveConfig, seed: int
) -> EvaluationSet:
    """What `build_evaluation_set` built in `directory` of the same config, without looking at the documents again."""
    return EvaluationSet(directory, _objective(config, tokenizer, objective, seed), seed)


def _objective(config: DataConfig, tokenizer: Tokenizer, objective: ObjectiveConfig, seed: int) -> Objective:
    return build_objective(objective.evaluated(), tokenizer, config.sequence_length, seed)


def training_documents(config: DataConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of every training document once, file by file."""
    for part in _training_parts(config, tokenizer):
        yield from part.texts(tokenizer)


def heldout_documents(config: DataConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of every held-out document: those that `holdout` sets aside, then those of `evaluation`."""
    for part in _heldout_parts(config, tokenizer, "data.evaluation"):
        yield from part.texts(tokenizer)


def heldout_pairs(config: DataConfig, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Text and target of every held-out pair, in the order of `heldout_documents`."""
    for part in _heldout_parts(config, tokenizer, "data.evaluation"):
        yield from part.pairs(tokenizer)


def heldout_values(config: DataConfig, tokenizer: Tokenizer) -> Iterator[Mapping[str, Any]]:
    """The values of every held-out document that is a record, in the order of `heldout_documents`."""
    for part in _heldout_parts(config, tokenizer, "data.evaluation"):
        if isinstance(part, _Text):
            yield from part.values()


def heldout_digest(config: DataConfig, tokenizer: Tokenizer) -> str:
    """16 hexadecimal digits of which documents are held out and how they are read, without reading them."""
    parts = _heldout_parts(config, tokenizer, "data.evaluation")
    return hashlib.sha256(" ".join([tokenizer.digest, *(part.digest for part in parts)]).encode()).hexdigest()[:16]


_Stored = tuple[list[np.ndarray], int | None]
"""What is stored for a sample, and the bytes of its document; None for another one of the document before."""


class _Text:
    """Documents of a corpus, on one side of the held-out split."""

    def __init__(self, corpus: Corpus, held_out: bool) -> None:
        self.corpus = corpus
        self.held_out = held_out
        self.digest = f"{corpus.digest} {held_out}"
        self.dropped: Mapping[str, int] = corpus.dropped

    def take_counts(self) -> BadCounts:
        return self.corpus.take_counts()

    def texts(self, tokenizer: Tokenizer) -> Iterator[str]:
        return (document.text for document in self._documents())

    def pairs(self, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
        return ((document.text, document.target or "") for document in self._documents())

    def values(self) -> Iterator[Mapping[str, Any]]:
        return (document.values or {} for document in self._documents())

    def tokens(self, tokenizer: Tokenizer, made: Objective, frame: Frame) -> Iterator[_Stored]:
        """The arrays of each document, and the bytes of its text, or of its target."""
        documents = made.checked(self._documents(), self.corpus.place, self.corpus.dropped)
        last: int | None = None
        for batch in tokenized(documents, tokenizer, made.config.stored, frame):
            for text in batch:
                counted = text.document.target if made.config.stored.target else text.document.text
                size = len((counted or "").encode(errors="surrogatepass"))
                # Of a document that an objective reads in parts, the first one stands for it.
                yield text.arrays, None if text.document.id == last else size
                last = text.document.id

    def _documents(self) -> Iterator[Document]:
        return self.corpus.documents(held_out=self.held_out)


class _Tokens:
    """Documents that are tokenised already."""

    def __init__(self, prefixes: list[str]) -> None:
        self.prefixes = prefixes
        self.shards = Shards(prefixes)
        self.digest = self.shards.digest
        self.dropped: Mapping[str, int] = {}

    def take_counts(self) -> BadCounts:
        return BadCounts()

    def texts(self, tokenizer: Tokenizer) -> Iterator[str]:
        documents = (self.shards.known(i, tokenizer.vocab_size) for i in range(self.shards.document_count))
        return map(tokenizer.decode, documents)

    def pairs(self, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
        texts = self.texts(tokenizer)
        return zip(texts, texts, strict=True)

    def tokens(self, tokenizer: Tokenizer, made: Objective, frame: Frame) -> Iterator[_Stored]:
        step = 1 + made.config.stored.arrays
        odd = [dataset for dataset in self.shards.datasets if dataset.document_count % step]
        if odd:
            raise UserError(
                f"{odd[0].prefix} has {odd[0].document_count} documents, which are no pairs of a text and a target;"
                f" name tokens that were prepared of sources with a target_field"
            )
        for first in range(0, self.shards.document_count, step):
            arrays = [self.shards.known(first + i, tokenizer.vocab_size).astype(np.int32) for i in range(step)]
            yield arrays, len(tokenizer.decode(arrays[-1]).encode())


def _training_parts(config: DataConfig, tokenizer: Tokenizer) -> list[_Text | _Tokens]:
    if all(source.about.is_tokenised for source in config.sources):
        paths = [path for source in config.sources for path in source.paths]
        return [_Tokens(prepared_prefixes(paths, "data.sources", tokenizer))]
    return [_Text(Corpus.training(config), False)]


def _heldout_parts(config: DataConfig, tokenizer: Tokenizer, where: str) -> list[_Text | _Tokens]:
    tokens = [source.about.is_tokenised for source in config.sources]
    parts: list[_Text | _Tokens] = []
    if config.holdout > 0:
        if any(tokens):
            raise UserError(
                f"data.holdout is {config.holdout}, but tokens cannot be held out any more; set it to 0, and name what"
                f" data prepare held out in data.evaluation (kind: tokens, paths: [OUT/heldout])"
            )
        parts.append(_Text(Corpus.training(config), True))
    text = [source for source in config.evaluation if not source.about.is_tokenised]
    if text:
        corpus = Corpus(
            text,
            span_bytes=config.span_bytes,
            where=where,
            cleaning=config.cleaning,
            max_document_bytes=config.max_document_bytes,
            on_bad_record=config.on_bad_record,
        )
        parts.append(_Text(corpus, False))
    for index, source in enumerate(config.evaluation):
        if source.about.is_tokenised:
            parts.append(_Tokens(prepared_prefixes(source.paths, f"{where}[{index}]", tokenizer)))
    if not parts:
        raise UserError("data.holdout is 0 and data.evaluation is empty, so nothing is held out; give either")
    return parts


def _write(
    parts: Iterable[_Text | _Tokens], tokenizer: Tokenizer, directory: Path, frame: Frame, made: Objective, fix: str
) -> None:
    """Write documents.bin, .idx and meta.json; the folder appears whole or not at all."""
    size, dropped, met = _Size(), Counter[str](), BadCounts()
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_folder(directory.parent, f".{directory.name}-")
    try:
        with writing(directory), IndexedWriter(temporary / PREFIX, token_dtype(tokenizer.vocab_size)) as writer:
            if frame.lead:
                writer.add([np.array(frame.lead)])
            begin = len(frame.begin)
            for part in parts:
                for arrays, count in part.tokens(tokenizer, made, frame):
                    writer.add(arrays)
                    size.documents += count is not None
                    counted = arrays[int(made.config.stored.target)]
                    begun = begin and tuple(counted[:begin].tolist()) == frame.begin
                    predicted = made.target_tokens([array[: len(array) - len(frame.end)] for array in arrays])
                    size.tokens += len(counted) - (begin if begun else 0) if predicted is None else predicted
                    size.bytes += count or 0
                dropped.update(part.dropped)
                met.add(part.take_counts())
        size.dropped, size.met = dict(sorted(dropped.items())), asdict(met)
        if not size.documents:
            raise UserError(f"the documents to evaluate on hold no text; {fix}")
        with writing(directory):
            size.files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
            size.check = _check_of(size)
            (temporary / "meta.json").write_text(json.dumps(asdict(size)))
            os.rename(temporary, directory)
    except OSError:
        # Another rank may have been faster; the contents are the same.
        if not directory.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
