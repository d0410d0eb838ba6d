"""What sentence-transformers keeps beside a model of transformers: how hidden states become a vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.base.durable import parse_json, read_file, write_json
from data_pipeline.base.errors import UserError
from data_pipeline.objectives.contrastive import ContrastiveObjective
from llmscale.config import ModelConfig
from llmscale.hugging_face.files import read_json

MODULES = "modules.json"
_SETTINGS = "sentence_bert_config.json"
_ABOUT = "config_sentence_transformers.json"
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"
_KINDS = "sentence_transformers.models."
"""What the types of modules begin with, by the name that all versions read."""
_MODES = {"first": "cls", "mean": "mean", "last": "lasttoken"}
"""Their `pooling_mode` by ours."""
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""The keys that all versions read, and earlier ones write in place of `pooling_mode`."""
_FIX = "repair it, or remove " + MODULES


def write_layout(folder: Path, model: ModelConfig) -> None:
    """Write it into the folder of a model with the head `contrastive`."""
    head = model.head
    assert head is not None
    kinds = ["Transformer", "Pooling", *(["Normalize"] if head.normalize else [])]
    places = ["", _POOLING, _NORMALIZE]
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": f"{_KINDS}{kind}"}
        for number, (kind, place) in enumerate(zip(kinds, places, strict=False))
    ]
    for place in places[1 : len(kinds)]:
        (folder / place).mkdir()
    write_json(folder / MODULES, modules)
    write_json(folder / _SETTINGS, {"max_seq_length": model.max_positions, "do_lower_case": False})
    write_json(folder / _ABOUT, {"prompts": {}, "similarity_fn_name": "cosine" if head.normalize else "dot"})
    flags = {flag: mode == _MODES[head.pooling] for mode, flag in _FLAGS.items()}
    pooling = {"word_embedding_dimension": model.hidden_size, **flags, "include_prompt": True}
    write_json(folder / _POOLING / "config.json", pooling)


def read_layout(folder: Path) -> tuple[ContrastiveObjective | None, list[str]]:
    """The objective with the pooling of a folder; None where it has no such layout, or one that llmscale does not
    compute. And sentences on what is not carried over.

    Raises:
        UserError: a file is damaged.
    """
    if not (folder / MODULES).is_file():
        return None, []
    try:
        listed = parse_json(read_file(folder / MODULES))
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{folder / MODULES} is no list of modules with type and path; {_FIX}") from None
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0][1]:
        named = ", ".join(kinds)
        return None, [f"{MODULES} lists {named:.200}; llmscale has Transformer, Pooling and Normalize: not used"]
    mode = _mode(read_json(folder / modules[1][1] / "config.json", _FIX))
    ours = {theirs: own for own, theirs in _MODES.items()}
    if mode not in ours:
        return None, [f"the pooling of {folder / modules[1][1]} is {mode:.60}, which llmscale does not have: not used"]
    return ContrastiveObjective(pooling=ours[mode], normalize="Normalize" in kinds), []  # type: ignore[arg-type]


def _mode(config: dict[str, Any]) -> str:
    """What a config of pooling says, in one word or several."""
    given = config.get("pooling_mode")
    if given is None:
        given = [mode for mode, flag in _FLAGS.items() if config.get(flag)] or ["mean"]
    return given if isinstance(given, str) else ", ".join(map(str, given))
