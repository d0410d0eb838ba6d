"""What a config need not say again that begins from a checkpoint (`train.init_from`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer_kinds import TOKENIZER_KINDS
from llmscale import families
from llmscale.config.yaml_files import read_yaml

_SHAPE = ("family", "layers", "hidden_size")
"""Settings of a model section that stands for itself; one without any of them changes settings of the checkpoint's."""
_OF_THE_RUN = ("head", "lora")
"""Settings of a model that other sections of its run make."""


def with_inherited(raw: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with what it takes over from `train.init_from`: the objective and the tokenizer where it gives
    none, and of the model what it does not change. A run that has begun keeps what it took over then.

    Raises:
        UserError: the model is not known, since there is no such checkpoint.
    """
    train, data, model = (raw.get(name) for name in ("train", "data", "model"))
    source = train.get("init_from") if isinstance(train, dict) else None
    if not isinstance(source, str) or not source:
        return raw
    needs = {
        "model": model is None or (isinstance(model, dict) and not any(key in model for key in _SHAPE)),
        "objective": raw.get("objective") is None,
        "tokenizer": isinstance(data, dict) and data.get("tokenizer") is None,
    }
    if not any(needs.values()):
        return raw
    begun = _begun(raw, source)
    theirs = begun or _config_of(Path(source))
    if theirs is None:
        if needs["model"]:
            raise UserError(
                f"train.init_from {source} is no run or checkpoint, whose model this config takes since it gives none;"
                f" correct it, or give model"
            )
        return raw
    taken = dict(raw)
    if needs["model"]:
        their_model = {key: value for key, value in theirs["model"].items() if key not in _OF_THE_RUN}
        taken["model"] = {**_encoder_of(their_model, model or {}), **(model or {})}
    if needs["objective"] and "objective" in theirs:
        taken["objective"] = theirs["objective"]
    if needs["tokenizer"]:
        tokenizer = begun["data"].get("tokenizer") if begun else _tokenizer_of(source)
        taken["data"] = {**data, **({"tokenizer": tokenizer} if tokenizer else {})}  # type: ignore[dict-item]
    return taken


def _encoder_of(theirs: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A model section, of which `changes` may leave the encoder alone."""
    whole = {**families.preset(str(theirs.get("family"))), **theirs}
    if changes.get("architecture") != "encoder" or whole.get("architecture") != "encoder_decoder":
        return theirs
    layers = theirs.get("encoder_layers") or theirs.get("layers")
    return {**theirs, "encoder_layers": None, **({"layers": layers} if layers else {})}


def _begun(raw: dict[str, Any], source: str) -> dict[str, Any] | None:
    """The config of the run itself, where it has begun from that checkpoint."""
    run = raw.get("run")
    directory = run.get("directory") if isinstance(run, dict) else None
    own = _config_of(Path(directory)) if isinstance(directory, str) else None
    return own if own is not None and own.get("train", {}).get("init_from") == source else None


def _config_of(path: Path) -> dict[str, Any] | None:
    """The config of a run, a checkpoint or a run's folder of checkpoints; None where that cannot be read, which is said
    where its weights are."""
    run = path.parent if path.name == "checkpoints" else path
    manifests = sorted(run.glob("checkpoints/*/manifest.json"), reverse=True)
    for file in (path / "manifest.json", run / "config.yaml", *manifests):
        try:
            found = read_yaml(file) if file.suffix == ".yaml" else json.loads(file.read_bytes())["config"]
            if isinstance(found["model"], dict) and isinstance(found["data"], dict):
                return dict(found)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UserError):
            continue
    return None


def _tokenizer_of(source: str) -> dict[str, Any] | None:
    """The tokenizer section that names the files of a checkpoint's tokenizer."""
    from data_pipeline.tokenizer.inherited import tokenizer_of

    folder, meta = tokenizer_of(source)
    kind = (meta or {}).get("kind")
    if meta is None or kind not in TOKENIZER_KINDS:
        return None
    about = TOKENIZER_KINDS[kind]
    files = [str(folder / name) for name in about.files]
    section: dict[str, Any] = {"kind": kind, **dict(zip(("path", "merges"), files, strict=False))}
    options = meta.get("options")
    if isinstance(options, dict):
        section |= {option: options.get(option, True) for option in about.options}
    return section
