"""Which settings may change between two starts of a run: every key is either free or part of the identity."""

import json
import re
from typing import Any

import pytest

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, identity, identity_digest, known_keys, parse_config, require_same_identity

SOURCE = {"kind": "text", "paths": ["a.txt"]}

# Every key with a value that differs from the base config's. A new field must be added here, to one of the two.
FREE: dict[str, Any] = {
    "run.directory": "runs/b",
    "run.threads": 3,
    "run.device": "cpu",
    "data.workers": 5,
    "data.prefetch": 9,
    "data.evaluation": [SOURCE],
    "data.on_bad_record": "fail",
    "data.bad_record_warning": 0.5,
    "train.micro_batch": 3,
    "parallel.data": 4,
    "parallel.tensor": 2,
    "parallel.sequence_parallel": True,
    "parallel.context": 2,
    "parallel.pipeline": 2,
    "parallel.expert": 2,
    "engine.zero_stage": 3,
    "engine.dtype": "bf16",
    "engine.initial_scale_power": 7,
    "engine.offload": "optimizer",
    "engine.param_persistence_threshold": 7,
    "engine.max_live_parameters": 7,
    "engine.bucket_elements": 7,
    "engine.compile": True,
    "engine.activation_checkpointing": "block",
    "engine.dropout_layout_free": False,
    "evaluation.interval": 7,
    "evaluation.batch": 7,
    "evaluation.max_samples": 7,
    "evaluation.baselines": True,
    "evaluation.tasks": ["sciq"],
    "evaluation.task_data": ["sciq=a.jsonl"],
    "evaluation.task_limit": 7,
    "evaluation.task_overflow": "window",
    "evaluation.generate": {"metrics": ["bleu"]},
    "evaluation.best": "loss",
    "evaluation.patience": 7,
    "checkpoint.interval": 7,
    "checkpoint.keep": 7,
    "checkpoint.keep_every": 7,
    "logging.interval": 7,
    "logging.peak_flops": 7e12,
    "logging.trackers": ["tensorboard"],
    "logging.ledger_snapshot_interval": 7,
    "logging.profile_start": 7,
    "logging.profile_steps": 7,
    "logging.sample_prompts": ["x"],
    "recovery.hang_seconds": 7.0,
    "recovery.collective_seconds": 7.0,
    # What was decided is on record, whatever the settings say later.
    "recovery.spikes": {"window": 7, "threshold": 7.0, "skip_before": 7, "skip_after": 7, "tries": 7},
    "recovery.check_every": 7,
    "recovery.node_exclusions": 7,
}
IDENTITY: dict[str, Any] = {
    "run.seed": 1,
    "data.sources": [{**SOURCE, "paths": ["b.txt"]}],
    "data.sources.kind": "jsonl",
    "data.sources.paths": ["a.txt", "b.txt"],
    "data.sources.exclude": ["x"],
    "data.sources.document": "line",
    "data.sources.delimiter": "==",
    "data.sources.quote": "",
    "data.sources.escape": "\\",
    "data.sources.encoding": "gb18030",
    "data.sources.target_field": "summary",
    "data.sources.fields": {"label": "topic"},
    "data.sources.join": " ",
    "data.sources.target_paths": ["b.txt"],
    "data.sources.columns": ["text", "label"],
    "data.sources.layout": "alpaca",
    "data.sources.defaults": {"text": ""},
    "data.sources.records": "data",
    "data.sources.label": "a",
    "data.sources.weight": 7.0,
    "data.sources.epochs": 7.0,
    "data.sources.field": "body",
    "data.sources.name": "json",
    "data.sources.subset": "en",
    "data.sources.split": "validation",
    "data.holdout": 0.1,
    "data.order": "finite",
    "data.mixture.temperature": 7.0,
    "data.mixture.stages": [{"from_tokens": 7, "weights": {"a": 1.0}}],
    "data.cleaning": [{"step": "whitespace"}],
    "data.deduplication": {"exact": True},
    "data.max_document_bytes": 7,
    "data.tokenizer.kind": "bytes",
    "data.tokenizer.path": "t.model",
    "data.tokenizer.merges": "merges.txt",
    "data.tokenizer.lower_case": False,
    "data.tokenizer.special": {"eos": "x"},
    "data.tokenizer.chat_template": "t.jinja",
    "data.tokenizer.train.model": "unigram",
    "data.tokenizer.train.vocab_size": 500,
    "data.tokenizer.train.character_coverage": 0.99,
    "data.tokenizer.train.max_bytes": 7,
    "data.sequence_length": 7,
    "data.lanes": 7,
    "data.span_bytes": 7,
    "data.shuffle_buffer": 7,
    "model.layers": 7,
    "model.hidden_size": 24,
    "model.heads": 6,
    "model.kv_heads": 2,
    "model.head_size": 2,
    "model.ffn_size": 7,
    "model.vocab_size": 7,
    "model.vocab_multiple": 7,
    "model.max_positions": 7,
    "model.positions": "rotary",
    "model.position_offset": 2,
    "model.rotary_base": 7.0,
    "model.rotary_fraction": 0.5,
    "model.norm": "rmsnorm",
    "model.norm_eps": 0.5,
    "model.activation": "swiglu",
    "model.bias": False,
    "model.tied_embeddings": False,
    "model.init_std": 0.5,
    "model.family": "gpt2",
    "model.architecture": "encoder",
    "model.encoder_layers": 7,
    "model.experts": {"count": 4},
    "model.rotary_local_base": 7.0,
    "model.rotary_interleaved": True,
    "model.rotary_pattern": [True, False],
    "model.rotary_local_scaled": False,
    "model.rotary_scaling": {"factor": 2.0},
    "model.relative_buckets": 8,
    "model.relative_max_distance": 77,
    "model.attention_pattern": ["local"],
    "model.window": 7,
    "model.attention_scale": 0.5,
    "model.latent": {"key_value_rank": 8},
    "model.query_key_norm": True,
    "model.query_key_norm_over": "projection",
    "model.embedding_multiplier": 2.0,
    "model.residual_multiplier": 0.5,
    "model.head_divisor": 2.0,
    "model.norm_plus_one": True,
    "model.norm_bias": False,
    "model.norm_order": "post",
    "model.embedding_norm": True,
    "model.first_norm": False,
    "model.parallel_residual": True,
    "model.shared_norm": True,
    "model.qkv_bias": False,
    "model.attention_output_bias": False,
    "model.head_bias": True,
    "model.head_transform": True,
    "model.scaled_head": True,
    "model.token_types": 2,
    "model.next_sentence": True,
    "model.query_layer": True,
    "model.dropout": 0.5,
    "model.attention_dropout": 0.5,
    "model.dropout_scheme": "t5",
    "model.init_scheme": "fan_in",
    "optimizer.name": "sgd",
    "optimizer.lr": 0.5,
    "optimizer.betas": [0.5, 0.5],
    "optimizer.eps": 0.5,
    "optimizer.momentum": 0.5,
    "optimizer.adamw_lr": 0.5,
    "optimizer.scale_parameter": False,
    "optimizer.nesterov": False,
    "optimizer.newton_schulz_steps": 7,
    "optimizer.lr_adjustment": "original",
    "optimizer.weight_decay": 0.5,
    "optimizer.clip": 0.5,
    "schedule.name": "wsd",
    "schedule.warmup_steps": 7,
    "schedule.decay_steps": 7,
    "schedule.stable_steps": 7,
    "schedule.final_fraction": 0.5,
    "train.global_batch": 7,
    "train.batch_ramp": {"start": 4, "increment": 4, "samples": 40},
    "train.epochs": 7.0,
    "train.init_from": "other",
    "finetune": {"train": "head"},
    "objective": {"name": "prefix"},
}
# Sections that are there as a whole or not, or come in several kinds, and lists of sections.
WHOLE = (
    "data.evaluation",
    "data.mixture.stages",
    "data.cleaning",
    "data.deduplication",
    "finetune",
    "train.batch_ramp",
    "recovery.spikes",
    "evaluation.generate",
    "model.experts",
    "model.head",
    "model.latent",
    "model.lora",
    "model.rotary_scaling",
    "objective",
)
# What other settings must say before these may be set.
NEEDS: dict[str, dict[str, Any]] = {
    "data.sources.escape": {"data.sources.kind": "csv"},
    "finetune": {"train.init_from": "other"},
    "data.sources.target_paths": {"data.sources.document": "line"},
    "data.sources.columns": {"data.sources.kind": "csv"},
    "data.sources.layout": {"data.sources.kind": "jsonl"},
    "evaluation.best": {"evaluation.interval": 7},
    "evaluation.patience": {"evaluation.best": "loss", "evaluation.interval": 7},
    "model.encoder_layers": {"model.architecture": "encoder_decoder"},
    "model.attention_pattern": {"model.window": 4},
    "model.latent": {"model.positions": "rotary", "model.kv_heads": None},
    "model.norm_plus_one": {"model.norm": "rmsnorm"},
    "model.shared_norm": {"model.parallel_residual": True},
    "model.next_sentence": {"model.architecture": "encoder", "model.token_types": 2},
}
# Part of the identity only under the cosine schedule; tested on its own. The head follows from the objective, and the
# factors from finetune.lora.
CONDITIONAL = {"train.steps", "model.head", "model.lora"}


def base(**changes: Any) -> RunConfig:
    """A config with `changes` as {dotted key: value}."""
    raw: dict[str, Any] = {
        "run": {"directory": "runs/a"},
        "data": {"sources": [dict(SOURCE)]},
        "model": {"hidden_size": 48, "heads": 12},
    }
    for key, value in changes.items():
        node = raw
        *parents, last = key.replace("data.sources.", "data.sources.0.").split(".")
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        node[last] = value
    return parse_config(raw)


def leaf_keys() -> set[str]:
    keys = [key for key, _ in known_keys() if not key.startswith(tuple(f"{section}." for section in WHOLE))]
    leaves = {key for key in keys if not any(other.startswith(key + ".") for other in keys)}
    return leaves | {"data.sources"}


def test_every_key_is_stated_here():
    assert leaf_keys() == {*FREE, *IDENTITY, *CONDITIONAL}
    assert not set(FREE) & set(IDENTITY)


@pytest.mark.parametrize("key", sorted(FREE))
def test_free_keys_leave_the_identity(key):
    changed = base(**NEEDS.get(key, {}), **{key: FREE[key]})
    assert changed != base()
    assert identity_digest(changed) == identity_digest(base())
    require_same_identity(changed, identity(base()), "runs/a")


@pytest.mark.parametrize("key", sorted(IDENTITY))
def test_other_keys_change_the_identity(key):
    needed = NEEDS.get(key, {})
    before, changed = base(**needed), base(**needed, **{key: IDENTITY[key]})
    assert changed != before
    assert identity_digest(changed) != identity_digest(before)
    with pytest.raises(UserError):
        require_same_identity(changed, identity(before), "runs/a")


@pytest.mark.parametrize(
    ("schedule", "same"), [("cosine", False), ("wsd", True), ("inverse_sqrt", True), ("constant", True)]
)
def test_steps_belong_to_the_identity_only_where_the_schedule_needs_them(schedule, same):
    digests = {identity_digest(base(**{"schedule.name": schedule, "train.steps": steps})) for steps in (10, 20)}
    assert (len(digests) == 1) == same


def test_the_identity_is_plain_and_survives_json():
    stated = identity(base())
    assert json.loads(json.dumps(stated)) == stated
    assert stated["data.sources.0.paths"] == ["a.txt"]
    assert list(stated) == sorted(stated)


def test_the_refusal_names_the_key_both_values_and_the_ways_out():
    recorded = identity(base())
    with pytest.raises(UserError) as caught:
        require_same_identity(base(**{"optimizer.lr": 0.5, "run.seed": 3}), recorded, "runs/a")
    message = str(caught.value)
    for part in (
        "runs/a",
        "optimizer.lr",
        "0.0003",
        "0.5",
        "1 more: run.seed",
        "run.directory",
        "train.init_from=runs/a",
    ):
        assert part in message


@pytest.mark.parametrize("added", [False, True])
def test_the_refusal_names_what_a_list_that_was_empty_holds(added):
    configs = [base(), base(**{"data.cleaning": [{"step": "length", "min": 7}]})]
    recorded, current = configs if added else configs[::-1]
    with pytest.raises(UserError) as caught:
        require_same_identity(current, identity(recorded), "runs/a")
    held = r"\{.*'0.min': 7, '0.step': 'length'\}"
    old, new = (r"\[\]", held) if added else (held, r"\[\]")
    assert re.search(rf"trained with data\.cleaning = {old}, but the config says {new}", str(caught.value))
