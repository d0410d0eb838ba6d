"""The files of an adapter in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from data_pipeline.base.durable import write_json
from data_pipeline.base.errors import UserError
from llmscale.config.lora import LoraConfig
from llmscale.hugging_face.factors import Factors, Theirs
from llmscale.hugging_face.files import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_OWN = "llmscale"
"""The key of the file's metadata that says what PEFT does not: `Origin`."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys(
        ("use_qalora", "lora_bias", "use_bdlora", "arrow_config", "kasa_config", "alora_invocation_tokens",
         "trainable_token_indices", "layer_replication", "target_parameters", "monteclora_config", "velora_config"),
        (None, False, [], {}),
    ),
}  # fmt: skip
"""Options of an adapter_config.json that make of its tensors something else than LoRA or DoRA, or change the base, with
the values under which they do not."""
_FIX = "give a folder that peft or `llmscale export --adapter` wrote"


@dataclass(frozen=True)
class Origin:
    """What an adapter that llmscale wrote says of itself."""

    base: str
    """`base_digest` of the model that it belongs to."""
    lora: LoraConfig
    """Its settings."""
    columns: dict[str, dict[str, tuple[int, int]]]
    """By their module: `Theirs.columns`."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as its files have it."""

    folder: Path
    factors: dict[str, Factors]
    """By their module, whose B has the module's scale in it relative to that of `lora`."""
    others: dict[str, Tensor]
    """Whole tensors that were trained beside, by their name."""
    lora: LoraConfig
    """Without targets; the rank is the largest."""
    origin: Origin | None


def base_digest(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """Of the values of a model's frozen tensors, 16 hexadecimal digits. Rounded to bf16, in which they may have been
    held in training.

    Args:
        names: canonical ones, in any order.
        read: a tensor in fp32.
    """
    found = hashlib.sha256()
    for name in sorted(names):
        values = read(name).to(torch.bfloat16).contiguous().view(torch.uint8)
        found.update(f"{name} ".encode())
        found.update(values.numpy().tobytes())
    return found.hexdigest()[:16]


def write_adapter(
    folder: Path,
    modules: list[Theirs],
    others: Mapping[str, Tensor],
    lora: LoraConfig,
    *,
    base: str,
    task: str | None,
    transposed: bool,
    origin: Origin,
) -> None:
    """Fill a folder with the two files.

    Args:
        others: whole tensors that were trained beside, by their name.
        base: the path or name of the base model, for PEFT.
        task: PEFT's `task_type`.
        transposed: whether their weights are (inputs, outputs).
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {f"{_PREFIX}{name}": tensor for name, tensor in others.items()}
    ranks: dict[str, int] = {}
    for each in modules:
        tensors[f"{_PREFIX}{each.module}{_A}"] = each.factors.down
        tensors[f"{_PREFIX}{each.module}{_B}"] = each.factors.up
        if each.factors.magnitude is not None:
            tensors[f"{_PREFIX}{each.module}{_MAGNITUDE}"] = each.factors.magnitude
        if len(each.factors.down) != lora.rank:
            ranks[each.module] = len(each.factors.down)
    values = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": [each.module for each in modules],
        "rank_pattern": {_exactly(name): rank for name, rank in ranks.items()},
        # So that each has the scale of all.
        "alpha_pattern": {
            _exactly(name): _whole(lora.scale * (rank**0.5 if lora.rslora else rank)) for name, rank in ranks.items()
        },
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in others}) or None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, values)
    said = {"base": origin.base, "lora": origin.lora.model_dump(mode="json"), "columns": origin.columns}
    data = {name: tensor.contiguous() for name, tensor in tensors.items()}
    (folder / TENSORS).write_bytes(save(data, metadata={"format": "pt", _OWN: json.dumps(said)}))


def _whole(number: float) -> float | int:
    """As PEFT, which has whole alphas, writes it where that is the same."""
    return int(number) if number == int(number) else number


def _exactly(module: str) -> str:
    """A key of PEFT's patterns, which are regular expressions of the end of a name."""
    return re.escape(module)


def read_adapter(folder: Path) -> Adapter:
    """An adapter's files.

    Raises:
        UserError: one is missing or damaged, or it is another kind of adapter than LoRA and DoRA.
    """
    path = folder / CONFIG
    values = read_json(path, _FIX)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {values.get('peft_type')!r:.60}, but llmscale reads LORA; {_FIX}")
    for key, plain in _PLAIN.items():
        if key in values and values[key] is not None and values[key] not in plain:
            raise UserError(
                f"{path}: {key} is {values[key]!r:.60}, but llmscale reads adapters with {plain[0]!r} there alone;"
                f" merge it into its base with peft, and import that"
            )
    tensors, origin = _read_tensors(folder / TENSORS)
    pairs, others = _sorted_out(tensors, folder / TENSORS)
    if not pairs:
        raise UserError(f"{folder / TENSORS} holds no factors (NAME{_A} and NAME{_B}); {_FIX}")
    try:
        rank = max(len(each.down) for each in pairs.values())
        lora = LoraConfig(
            rank=rank,
            alpha=_alpha(values, path, rank),
            rslora=bool(values.get("use_rslora", False)),
            dropout=values.get("lora_dropout", 0.0),
            dora=any(each.magnitude is not None for each in pairs.values()),
        )
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}; {_FIX}") from None
    scaled = {}
    for name, each in pairs.items():
        ratio = _scale(values, path, name, len(each.down), lora.rslora) / lora.scale
        # Not for the last bit of a quotient.
        up = each.up if math.isclose(ratio, 1.0, rel_tol=1e-12) else each.up * ratio
        scaled[name] = Factors(each.down, up, each.magnitude)
    return Adapter(folder, scaled, others, lora, origin)


def _alpha(values: dict[str, Any], path: Path, rank: int) -> float:
    """The alpha of layers of the largest rank that has the scale of the others."""
    given = _number(values.get("lora_alpha", 8), "lora_alpha", path)
    own = _number(values.get("r", rank), "r", path)
    return given * ((rank / own) ** 0.5 if values.get("use_rslora") else rank / own)


def _scale(values: dict[str, Any], path: Path, module: str, rank: int, rslora: bool) -> float:
    alpha = _number(values.get("lora_alpha", 8), "lora_alpha", path)
    patterns = values.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{path}: alpha_pattern is {patterns!r:.60}, but must be an object; {_FIX}")
    for pattern, value in patterns.items():
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise UserError(f"{path}: alpha_pattern has {pattern!r:.60}, which is no pattern ({error})") from None
        if fits:
            alpha = _number(value, "alpha_pattern", path)
            break
    return alpha / (rank**0.5 if rslora else rank)


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise UserError(f"{path}: {key} is {value!r:.60}, but must be a number above 0; {_FIX}")
    return float(value)


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], Origin | None]:
    if not path.is_file():
        raise UserError(f"there is no {path}; {_FIX}")
    try:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as held:
            tensors = {name: held.get_tensor(name).float() for name in held.keys()}  # noqa: SIM118
            said = json.loads((held.metadata() or {}).get(_OWN, "null"))
            origin = None if said is None else _origin(said)
    except Exception as error:  # safetensors has an exception of its own, and raises others too
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read {path}: {reason}; download it again") from None
    broken = next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)
    if broken is not None:
        raise UserError(f"{broken} in {path} has values that are NaN or infinite; download it again")
    return tensors, origin


def _origin(said: Any) -> Origin:
    columns = {
        module: {layer: (int(first), int(last)) for layer, (first, last) in own.items()}
        for module, own in said["columns"].items()
    }
    return Origin(str(said["base"]), LoraConfig.model_validate(said["lora"]), columns)


def _sorted_out(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Factors by module, and the other tensors by name."""
    parts: dict[str, dict[str, Tensor]] = {}
    others = {}
    for stored, tensor in tensors.items():
        name = stored.removeprefix(_PREFIX).replace(f"{_MAGNITUDE}.weight", _MAGNITUDE)
        suffix = next((suffix for suffix in (_A, _B, _MAGNITUDE) if name.endswith(suffix)), None)
        if suffix is None:
            others[name.replace(".modules_to_save", "")] = tensor
        else:
            parts.setdefault(name.removesuffix(suffix), {})[suffix] = tensor
    found = {}
    for module, own in parts.items():
        if _A not in own or _B not in own:
            missing = _B if _A in own else _A
            raise UserError(f"{path} lacks {_PREFIX}{module}{missing}; download it again")
        down, up, magnitude = own[_A], own[_B], own.get(_MAGNITUDE)
        if down.dim() != 2 or up.dim() != 2 or len(down) != up.shape[1]:
            raise UserError(
                f"{path}: {module} has A of shape {list(down.shape)} and B of shape {list(up.shape)}, which are no"
                f" (rank, inputs) and (outputs, rank); {_FIX}"
            )
        if magnitude is not None and magnitude.numel() != len(up):
            raise UserError(
                f"{path}: {module} has {magnitude.numel()} magnitudes, but {len(up)} outputs; download it again"
            )
        found[module] = Factors(down, up, None if magnitude is None else magnitude.flatten())
    lacking = [module for module, own in found.items() if own.magnitude is None]
    if lacking and len(lacking) < len(found):
        raise UserError(f"{path} lacks {_PREFIX}{lacking[0]}{_MAGNITUDE}, which other modules have; download it again")
    return found, others
