"""What `llmscale checkpoint show` and `verify` print."""

from collections.abc import Iterable
from math import prod
from pathlib import Path

from data_pipeline.base.errors import UserError
from llmscale.checkpoint.members import recorded_identity, why_stranger
from llmscale.checkpoint.reader import Checkpoint, Progress
from llmscale.checkpoint.store import find_checkpoints


def show(path: str | Path) -> str:
    """A description of a checkpoint, or of the newest one of a run directory.

    Raises:
        UserError: there is none, or its manifest is damaged or newer.
    """
    checkpoint = _newest(path)
    manifest = checkpoint.manifest
    kinds: dict[str, int] = {}
    pieces = 0
    for entry in manifest.tensors.values():
        for kind, parts in entry.kinds.items():
            kinds[kind] = kinds.get(kind, 0) + prod(entry.shape_of(kind))
            pieces += len(parts)
    rows = [
        ("checkpoint", str(checkpoint.path)),
        ("step", f"{manifest.step:,}"),
        ("samples", f"{manifest.samples:,}"),
        ("tensors", f"{len(manifest.tensors):,} in {pieces:,} pieces"),
        ("parameters", f"{kinds.get('weight', 0):,}"),
        ("stored", ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())),
        ("bytes", _size(sum(entry.bytes for entry in manifest.files.values()))),
        ("written by", f"{manifest.world} {'rank' if manifest.world == 1 else 'ranks'}, attempt {manifest.attempt}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ("format", str(manifest.format_version)),
        *([("drawn, not trained", ", ".join(manifest.drawn))] if manifest.drawn else []),
    ]
    return "\n".join(
        [
            *_table(rows),
            "",
            "files",
            *_table((f"  {name}", _size(entry.bytes)) for name, entry in sorted(manifest.files.items())),
            "",
            "identity",
            *_table((f"  {key}", repr(value)) for key, value in manifest.identity.items()),
        ]
    )


def verify(path: str | Path, progress: Progress | None = None) -> str:
    """Read every file of a checkpoint, or of the newest one of a run directory, and say that it is intact.

    Raises:
        CorruptCheckpoint: names every bad file and what is wrong with it.
        UserError: there is no checkpoint.
    """
    checkpoint = _newest(path)
    checkpoint.verify(progress=progress)
    files = checkpoint.manifest.files
    size = sum(entry.bytes for entry in files.values())
    return f"{checkpoint.path} is intact: step {checkpoint.step:,}, {len(files)} files, {_size(size)}"


def _newest(path: str | Path) -> Checkpoint:
    """The newest one that is the run's, whatever else is wrong with it."""
    strangers: list[str] = []
    folders = find_checkpoints(path)
    listed = folders != [Path(path)]
    run = recorded_identity(Path(path)) if listed else None
    for folder in folders:
        checkpoint = Checkpoint(folder)
        stranger = why_stranger(folder, checkpoint.manifest, run) if listed else None
        if stranger is None:
            return checkpoint
        strangers.append(stranger)
    raise UserError("; ".join(strangers) or f"{path} holds no checkpoint yet; give a run that has saved one")


def _table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max((len(key) for key, _ in rows), default=0)
    return [f"{key:<{width}}  {value}" for key, value in rows]


def _size(count: int) -> str:
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    exact = f"{count:,} bytes"
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB ({exact})" if power else exact
