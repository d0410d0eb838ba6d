"""Where a head is trained alone: what the body makes of each row is computed once, and kept in the run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from data_pipeline.base.terminal import tell
from llmscale.config import RunConfig
from llmscale.distributed.agreement import on_rank_zero
from llmscale.distributed.process_group import all_reduce_wrapping
from llmscale.engine.engine import Engine
from llmscale.engine.features import Features
from llmscale.finetune.feature_store import FeatureStore
from llmscale.finetune.trained import names_of, part_of, training_of
from llmscale.objectives import model_side
from llmscale.slices.fragment import Fragment
from llmscale.train.run_directory import RunDirectory

_FORMAT = 1
_FACTOR = 0x9E3779B97F4A7C15


def keep_features(config: RunConfig, run: RunDirectory, engine: Engine) -> None:
    """Where a head is trained alone, let the engine compute what the body makes of each row once."""
    if config.finetune is None or not config.finetune.features:
        return
    trained = training_of(config.model, config.finetune, names_of(config.model)).names
    if any(part_of(config.model, name) != "head" for name in trained):
        return
    reason = why_no_features(config)
    if reason is None:
        engine.features = _open(engine, run.cache)
    else:
        on_rank_zero(lambda: tell(f"the body is computed at every step: {reason}"))


def why_no_features(config: RunConfig) -> str | None:
    """Why a head that is trained alone needs the body at every step; None: its vectors are computed once."""
    model, parallel = config.model, config.parallel
    kind = model_side(config.objective).heads(model)[0].features
    if kind is None:
        return f"the head {model.predicts[0]} reads other tokens each time"
    if model.dropout or model.attention_dropout:
        return (
            f"the body drops other values each time (model.dropout={model.dropout},"
            f" model.attention_dropout={model.attention_dropout}); set both to 0"
        )
    if parallel.pipeline > 1 or parallel.context > 1:
        return "parallel.pipeline and parallel.context cut the body's results"
    if kind == "token" and parallel.sequence_parallel:
        return "parallel.sequence_parallel cuts the body's results"
    if model.experts is not None:
        return "the router has a loss of its own"
    return None


def _open(engine: Engine, cache: Path) -> Features:
    """The vectors of an engine's body, kept in a folder of `cache` that is named by what decides them; collective."""
    folder = cache / f"features-{_digest(engine)}"
    store = FeatureStore(folder, writes=engine.grid.is_sample_leader)
    tokens = model_side(engine.config.objective).heads(engine.config.model)[0].features == "token"
    return Features(store, engine.condense, engine.device, tokens)


def _digest(engine: Engine) -> str:
    """Of the body's weights, its config and its arithmetic."""
    frozen = {name for name, parameter in engine.named if not parameter.requires_grad}
    total = 0
    for part in engine.state():
        if part.name in frozen:
            total = (total + _checksum(part)) % 2**64
    whole = {
        "format": _FORMAT,
        "weights": all_reduce_wrapping(total),
        "model": engine.config.model.model_dump(mode="json"),
        "dtype": str(engine.dtype),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _checksum(fragment: Fragment) -> int:
    """A sum over elements, so that of a tensor which is cut it is the sum over the parts."""
    place = f"{fragment.name} {fragment.slice.offsets}".encode()
    salt = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little")
    bits = fragment.tensor.cpu().contiguous().numpy().view(np.uint32).astype(np.uint64)
    places = np.arange(fragment.slice.start, fragment.slice.end, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = (bits + np.uint64(salt)) * ((places * np.uint64(2) + np.uint64(1)) * np.uint64(_FACTOR))
        return int((mixed ^ (mixed >> np.uint64(29))).sum(dtype=np.uint64))
