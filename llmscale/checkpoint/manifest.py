"""`manifest.json`: what a checkpoint holds and where. Written last, guarded by its own SHA-256, read strictly."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.base.durable import parse_json, read_file
from data_pipeline.base.errors import UserError
from llmscale.checkpoint.errors import CorruptCheckpoint
from llmscale.slices.tensor_slice import TensorSlice

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CURSOR = "cursor.json"
TOKENIZER = "tokenizer"
_DEEPEST = 40
"""Most levels of what the run says of itself, of which others make JSON and YAML again."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Shape = Annotated[tuple[Count, ...], Field(max_length=32)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """A file of the checkpoint."""

    bytes: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Piece:
    """Where a slice of a global tensor lies on disk; offsets, sizes, start and end as in `TensorSlice`."""

    file: str
    """File name within the checkpoint."""
    key: str
    """Key within the safetensors file."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    end: int

    @staticmethod
    def of(held: TensorSlice, file: str, key: str) -> "Piece":
        """A slice that lies there."""
        return Piece(file, key, held.offsets, held.sizes, held.start, held.end)


class TensorEntry(_Record):
    """A global tensor: its shape, and for each kind (weight, exp_avg, ...) the pieces that hold it."""

    shape: Shape
    kinds: dict[str, list[Piece]]
    shapes: dict[str, Shape] = {}
    """Shapes of the kinds that are not of the tensor's own, such as Adafactor's row and column statistics."""

    def shape_of(self, kind: str) -> tuple[int, ...]:
        """Global shape of one kind."""
        return self.shapes.get(kind, self.shape)

    def slices(self, kind: str) -> Iterator[tuple[TensorSlice, Piece]]:
        """The slices that the pieces of one kind hold; raises ValueError where one leaves the tensor."""
        for piece in self.kinds[kind]:
            yield TensorSlice(self.shape_of(kind), piece.offsets, piece.sizes, piece.start, piece.end), piece


class RankRecord(_Record):
    """What one rank wrote; the manifest is merged from these."""

    tensors: dict[str, TensorEntry]
    files: dict[str, FileEntry]
    cursor: dict[str, Any]


class RunState(_Record):
    """What rank 0 says about the run; everything must be JSON."""

    samples: Count
    """Global samples consumed."""
    progress: dict[str, Any] = {}
    """Other counts of the training loop, such as tokens."""
    optimizer: dict[str, Any] = {}
    """Step counts of the optimizer."""
    schedule: dict[str, Any] = {}
    """State of the learning-rate schedule."""
    rng: dict[str, Any] = {}
    """States of random generators."""
    config: dict[str, Any] = {}
    """The resolved config."""
    identity: dict[str, Any] = {}
    """`llmscale.config.identity`."""
    drawn: list[str] = []
    """Tensors of the head that `llmscale import --new-head` drew and that no step has trained since."""

    @model_validator(mode="after")
    def _shallow(self) -> "RunState":
        said = (self.progress, self.optimizer, self.schedule, self.rng, self.config, self.identity)
        if any(_deeper(value, _DEEPEST) for value in said):
            raise ValueError(f"what it says of the run is nested more than {_DEEPEST} levels deep")
        return self


class Manifest(RunState):
    """The whole manifest."""

    format_version: Annotated[int, Field(ge=1)]
    step: Count
    """Finished optimizer steps."""
    attempt: Count
    """Which start of the run wrote it."""
    world: Annotated[int, Field(ge=1, lt=2**31)]
    """Ranks that wrote it."""
    versions: dict[str, str]
    """Versions of python, torch, deepspeed, safetensors and llmscale."""
    tensors: dict[str, TensorEntry]
    files: dict[str, FileEntry]
    """Every file but the manifest itself, by its path within the checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        for file in self.files:
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError(f"file name {file!r} leaves the checkpoint")
            if not file.isprintable() or not Path(file).parts:
                raise ValueError(f"{file!r} is no name of a file")
        for name, entry in self.tensors.items():
            for kind in entry.kinds:
                try:
                    slices = list(entry.slices(kind))
                except ValueError as error:
                    raise ValueError(f"{kind} of {name}: {error}") from None
                for held, piece in slices:
                    if piece.file not in self.files:
                        raise ValueError(f"{kind} of {name} lies in {piece.file}, which is not among the files")
                    # So that nothing larger than the files is ever asked for.
                    if held.numel * 4 > self.files[piece.file].bytes:
                        raise ValueError(f"{kind} of {name} has a piece that is larger than {piece.file}")
                if sum(held.numel for held, _ in slices) < prod(entry.shape_of(kind)):
                    raise ValueError(f"{kind} of {name} is larger than its pieces")
        return self


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON; its first member is the SHA-256 of the rest."""
    body = manifest.model_dump(mode="json")
    if not manifest.drawn:
        del body["drawn"]  # which older versions do not know
    return json.dumps({"sha256": _digest(body), **body}).encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        CorruptCheckpoint: missing, cut short, changed or inconsistent.
        UserError: written in a newer format.
    """
    try:
        return _read(folder / MANIFEST)
    except RecursionError:
        raise CorruptCheckpoint(f"{folder / MANIFEST} is nested too deep") from None


def _read(path: Path) -> Manifest:
    try:
        raw = parse_json(read_file(path), unique=True)
    except OSError as error:
        raise CorruptCheckpoint(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CorruptCheckpoint(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict) or type(raw.get("format_version")) is not int:
        raise CorruptCheckpoint(f"{path} has no format_version")
    digest = raw.pop("sha256", None)
    if raw["format_version"] > FORMAT_VERSION and digest == _digest(raw):
        raise UserError(
            f"{path} has format_version {raw['format_version']}, but this llmscale knows only up to {FORMAT_VERSION};"
            f" install a newer llmscale"
        )
    if digest != _digest(raw):
        raise CorruptCheckpoint(f"{path} was changed or damaged: its SHA-256 is not the one it records")
    try:
        return Manifest.model_validate(raw)
    except UnicodeEncodeError:  # half a surrogate pair where pydantic wants text
        raise CorruptCheckpoint(f"{path} holds text that is no Unicode") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise CorruptCheckpoint(f"{path}: {where or 'contents'}: {problem['msg']}") from None


def _deeper(value: Any, levels: int) -> bool:
    """Whether a JSON value has more than so many levels of lists and objects."""
    within: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(child, levels - 1) for child in within if isinstance(child, dict | list))


def _digest(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
