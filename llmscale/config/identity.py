"""What makes a run the same run: the part of the config that may not change between two starts."""

import hashlib
import json
from typing import Any

from data_pipeline.base.encodings import UTF8
from data_pipeline.base.errors import UserError
from llmscale.config.root import RunConfig
from llmscale.config.shell import override_word

# The samples and their order do not depend on these.
_FREE_DATA_KEYS = {"workers", "prefetch", "evaluation", "on_bad_record", "bad_record_warning"}

# How features are computed changes them by rounding alone, as the layout does.
_FREE_FINETUNE_KEYS = {"features", "forgetting"}


def identity(config: RunConfig) -> dict[str, Any]:
    """The settings that decide what is learned, flattened to dotted keys.

    Layout, engine, micro batch, workers, logging, checkpoints and evaluation are left out: they may change
    whenever a run starts again. `train.steps` belongs to it only where the schedule depends on it.
    """
    whole = config.model_dump(mode="json")
    kept: dict[str, Any] = {name: whole[name] for name in ("model", "objective", "optimizer", "schedule")}
    for name in config.objective.later:
        if getattr(config.objective, name) == type(config.objective).model_fields[name].default:
            del kept["objective"][name]
    if config.model.head is not None and not config.model.head.transform:
        del kept["model"]["head"]["transform"]
    # The model's head says it.
    kept["objective"].pop("transform", None)
    kept["data"] = {key: value for key, value in whole["data"].items() if key not in _FREE_DATA_KEYS}
    for source in kept["data"]["sources"]:
        # Unset, UTF-8 is read as well, but files in another encoding are refused: the samples are the same.
        if source["encoding"] in (None, UTF8):
            del source["encoding"]
        for name in ("escape", "join", "layout", "target_paths", "columns"):
            if source[name] in (None, []):
                del source[name]
    if kept["data"]["tokenizer"]["chat_template"] is None:
        del kept["data"]["tokenizer"]["chat_template"]
    kept["run"] = {"seed": whole["run"]["seed"]}
    kept["train"] = {key: whole["train"][key] for key in ("global_batch", "batch_ramp", "init_from", "epochs")}
    if whole["finetune"] is not None:
        kept["finetune"] = {key: value for key, value in whole["finetune"].items() if key not in _FREE_FINETUNE_KEYS}
    if config.schedule.name == "cosine" and config.train.epochs is None:
        kept["train"]["steps"] = config.train.steps
    return dict(sorted(flatten(kept)))


def identity_digest(config: RunConfig) -> str:
    """SHA-256 of the identity, as hexadecimal text."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def require_same_identity(config: RunConfig, recorded: dict[str, Any], where: str) -> None:
    """Refuse to continue a run under another identity.

    Raises:
        UserError: names the first setting that differs, both values and what to do.
    """
    current = identity(config)
    differing = [key for key in sorted({*current, *recorded}) if current.get(key) != recorded.get(key)]
    if not differing:
        return
    key = differing[0]
    more = f" (and {len(differing) - 1} more: {', '.join(differing[1:4])})" if len(differing) > 1 else ""
    raise UserError(
        f"{where} was trained with {key} = {_value(recorded, key)!r}, but the config says"
        f" {_value(current, key)!r}{more}; set it back, or give the new run its own run.directory"
        f" ({override_word('train.init_from', where)} starts it from these weights)"
    )


def _value(settings: dict[str, Any], key: str) -> Any:
    """What a flattened config holds under a key: of a list that is empty in the other config, the settings in it."""
    within = {name.removeprefix(f"{key}."): value for name, value in settings.items() if name.startswith(f"{key}.")}
    return within or settings.get(key)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of every setting of a dumped config."""
    if isinstance(value, dict):
        return [item for key, child in value.items() for item in flatten(child, f"{prefix}{key}.")]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [item for index, child in enumerate(value) for item in flatten(child, f"{prefix}{index}.")]
    return [(prefix[:-1], value)]
