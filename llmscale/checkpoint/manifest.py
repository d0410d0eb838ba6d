"""`manifest.json`: what a checkpoint holds and where. Written last, guarded by its own SHA-256, read strictly."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.errors import UserError
from llmscale.checkpoint.errors import CorruptCheckpoint
from llmscale.checkpoint.fragments import Piece
from llmscale.checkpoint.geometry import check_range

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
CURSOR = "cursor.json"
TOKENIZER = "tokenizer"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """A file of the checkpoint."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TensorEntry(_Record):
    """A global tensor: its shape, and for each kind (weight, exp_avg, ...) the pieces that hold it."""

    shape: tuple[int, ...]
    kinds: dict[str, list[Piece]]
    shapes: dict[str, tuple[int, ...]] = {}
    """Shapes of the kinds that are not of the tensor's own, such as Adafactor's row and column statistics."""

    def shape_of(self, kind: str) -> tuple[int, ...]:
        """Global shape of one kind."""
        return self.shapes.get(kind, self.shape)


class RankRecord(_Record):
    """What one rank wrote; the manifest is merged from these."""

    tensors: dict[str, TensorEntry]
    files: dict[str, FileEntry]
    cursor: dict[str, Any]


class RunState(_Record):
    """What rank 0 says about the run; everything must be JSON."""

    samples: int = Field(ge=0)
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


class Manifest(RunState):
    """The whole manifest."""

    format_version: int
    step: int = Field(ge=0)
    """Finished optimizer steps."""
    attempt: int = Field(ge=0)
    """Which start of the run wrote it."""
    world: int = Field(ge=1)
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
        for name, entry in self.tensors.items():
            for kind, pieces in entry.kinds.items():
                for piece in pieces:
                    if piece.file not in self.files:
                        raise ValueError(f"{kind} of {name} lies in {piece.file}, which is not among the files")
                    try:
                        check_range(entry.shape_of(kind), piece.offsets, piece.sizes, piece.start, piece.end)
                    except ValueError as error:
                        raise ValueError(f"{kind} of {name}: {error}") from None
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
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise CorruptCheckpoint(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CorruptCheckpoint(f"{path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("format_version"), int):
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
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise CorruptCheckpoint(f"{path}: {where or 'contents'}: {problem['msg']}") from None


def _digest(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
