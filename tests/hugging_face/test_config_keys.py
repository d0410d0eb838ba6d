"""Keys of config.json that are absent, null, doubled or of older versions: read as transformers reads them, or refused
where transformers refuses them too."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from data_pipeline.base.errors import UserError
from llmscale import families
from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.importing import import_directory
from llmscale.model import Transformer
from tests.hugging_face.references import BYTES, CASES, NAMES, VOCAB, config_of, randomized, reference, save
from tests.hugging_face.test_equal_models import both_logits

Values = dict[str, Any]
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
SHORT = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
PARAMETERS = {"rope_theta": 500.0, "rope_type": "default"}
ABSENT = "absent"
SLIDING = ["sliding_attention", "full_attention", "full_attention"]
ROPE: list[Values] = [
    {},
    {"rope_theta": 777},
    {"rope_theta": None, "rope_parameters": PARAMETERS},
    {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 4}},
    {"rope_scaling": LINEAR, "rope_parameters": PARAMETERS},
    {"rope_theta": 777.0, "rope_scaling": LINEAR, "rope_parameters": PARAMETERS},
    {"rope_theta": 777.0, "rope_scaling": None, "rope_parameters": {**LINEAR, "rope_theta": 500.0}},
    {"rope_theta": 777.0, "rope_scaling": {}, "rope_parameters": LINEAR},
    {"rope_parameters": {"rope_theta": 500.0, "factor": 3.0}},
    {"rope_theta": 777.0, "rope_scaling": {"rope_type": "linear", "type": "default", "factor": 3.0}},
    {"rope_theta": 777.0, "rope_scaling": {**LINEAR, "beta_fast": 32, "original_max_position_embeddings": 4}},
    {"rope_theta": 777.0, "rope_scaling": SHORT},
    {"rope_theta": 777.0, "rope_scaling": SHORT, "max_position_embeddings": 40},
    {"rope_theta": 777.0, "rope_scaling": SHORT, "original_max_position_embeddings": 12},
    {"rope_theta": 777.0, "rope_scaling": LLAMA3, "original_max_position_embeddings": 12},
    {"rope_scaling": YARN},
    {"rope_scaling": {**YARN, "beta_fast": 3, "beta_slow": 0, "attention_factor": 1.3}},
    {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": None}},
    {"rope_scaling": {**YARN, "mscale_all_dim": 1.0}, "original_max_position_embeddings": 12},
    {"rope_scaling": {"type": "yarn", "factor": 2}},
]
PARTIAL: list[Values] = [
    {"partial_rotary_factor": 0.8},
    {"partial_rotary_factor": 0.8, "rope_parameters": PARAMETERS},
    {"partial_rotary_factor": 0.8, "rope_parameters": {**PARAMETERS, "partial_rotary_factor": 0.3}},
    {"partial_rotary_factor": 0.8, "rope_theta": 777.0, "rope_scaling": LINEAR},
    {"rope_scaling": {**YARN, "partial_rotary_factor": 0.3}},
    {"partial_rotary_factor": None, "rope_parameters": {**PARAMETERS, "partial_rotary_factor": 0.3}},
]
NO_ROPE = dict.fromkeys(("rope_parameters", "rope_theta", "rope_scaling"), ABSENT)
HEADS: list[Values] = [
    {"head_dim": ABSENT},
    {"head_dim": None},
    {"num_key_value_heads": None},
    {"num_key_value_heads": ABSENT},
    {"hidden_act": "gelu"},
    {"hidden_act": "relu"},
    {"hidden_act": "gelu_python_tanh"},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": ABSENT},
    {"rms_norm_eps": ABSENT},
    {"sliding_window": None},
    {"sliding_window": ABSENT},
    {"sliding_window": 5},
    {"sliding_window": None, "use_sliding_window": True, "layer_types": None},
    {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1, "layer_types": ABSENT},
    {"sliding_window": 5, "use_sliding_window": True, "layer_types": SLIDING},
    {"mlp_only_layers": None},
    {"partial_rotary_factor": 1.0},
    {"partial_rotary_factor": None},
]
T5_FUNCTIONS = ["relu", "gelu", "gelu_new", "silu", "swish", "gelu_fast", "gelu_accurate", "gelu_python_tanh"]
T5_GATED = ["gelu", "silu", "relu", "gelu_new", "gelu_python", "gelu_fast"]
T5_TIES: list[Values] = [
    {"num_decoder_layers": ABSENT, "num_layers": 2},
    *({"tie_word_embeddings": value, "scale_decoder_outputs": ABSENT} for value in (None, ABSENT, True)),
]


def functions(names: list[str], gate: str = "") -> list[Values]:
    derived = {"dense_act_fn": ABSENT, "is_gated_act": ABSENT}
    return [{"feed_forward_proj": gate + name, **derived} for name in names]


PLAIN = ["relu", "silu", "gelu", "gelu_fast", "gelu_accurate", "gelu_python", "gelu_python_tanh"]
BOTH: dict[str, list[Values]] = {
    **{
        name: [{**NO_ROPE, **rope} for rope in ROPE] + HEADS
        for name in ("llama", "qwen3", "mistral", "olmo2", "granite")
    },
    # transformers cannot compute yarn where head_dim is null.
    "mixtral": [{**NO_ROPE, **rope} for rope in ROPE if "yarn" not in str(rope)] + HEADS,
    "qwen3_moe": [{**NO_ROPE, **rope} for rope in ROPE] + HEADS + [{"num_experts": ABSENT, "num_local_experts": 5}],
    "smollm3": [{**NO_ROPE, **rope} for rope in ROPE]
    + HEADS
    + [{"no_rope_layers": ABSENT}, {"no_rope_layers": None, "no_rope_layer_interval": 3}]
    + [{"no_rope_layers": ABSENT, "layer_types": ABSENT, "use_sliding_window": True, "sliding_window": 5}]
    + [{"layer_types": None, "use_sliding_window": True, "sliding_window": 5}, {"tie_word_embeddings": ABSENT}],
    "olmoe": [{**NO_ROPE, **rope} for rope in ROPE]
    + [{"num_key_value_heads": None}, {"num_experts": ABSENT, "num_local_experts": 5}, {"norm_topk_prob": ABSENT}]
    + [{"head_dim": 10}, {"clip_qkv": None}, {"router_aux_loss_coef": ABSENT}],
    "gpt_neox": [{**NO_ROPE, **rope} for rope in ROPE]
    + [
        {**NO_ROPE, **more}
        for more in (
            {"rotary_pct": 0.4},
            {"rotary_emb_base": 300},
            {"rotary_pct": 0.4, "rotary_emb_base": 300, "rope_theta": 9.0},
            {"rotary_pct": 0.4, "partial_rotary_factor": 0.8},
            {
                "rotary_pct": 0.4,
                "rotary_emb_base": 300,
                "rope_parameters": {**PARAMETERS, "partial_rotary_factor": 0.8},
            },
            {"rotary_pct": 0.4, "rope_scaling": LINEAR},
        )
    ]
    + [{"hidden_act": name} for name in PLAIN],
    "phi": [{**NO_ROPE, **rope} for rope in (*ROPE, *PARTIAL)]
    + [{"hidden_act": name} for name in PLAIN]
    + [{"num_key_value_heads": ABSENT}, {"tie_word_embeddings": ABSENT}, {**NO_ROPE, "partial_rotary_factor": None}],
    "glm": HEADS,
    "glm4": [{**NO_ROPE, **rope} for rope in (*ROPE, *PARTIAL)] + HEADS[:-2] + [{"attention_bias": ABSENT}],
    "falcon": [{**NO_ROPE, **rope} for rope in ROPE]
    + [{"activation": name} for name in PLAIN]
    + [{key: None} for key in ("alibi", "bias", "new_decoder_architecture", "multi_query", "parallel_attn")]
    + [{key: ABSENT} for key in ("alibi", "bias", "new_decoder_architecture", "multi_query", "parallel_attn")]
    + [{"num_ln_in_parallel_attn": count} for count in (0, 1, 2, 3)]
    + [{"num_kv_heads": 2}, {"num_kv_heads": None}, {"ffn_hidden_size": None}, {"n_embed": 40}, {"n_embed": None}],
    "bloom": [
        {"n_embed": 48, "hidden_size": 40},
        {"n_embed": None},
        {"num_hidden_layers": 3, "n_layer": 2},
        {"num_hidden_layers": 3, "n_layer": ABSENT},
        {"num_hidden_layers": None},
        {"num_attention_heads": 6, "n_head": 3},
        {"num_attention_heads": 3},
        {"slow_but_exact": True, "pretraining_tp": 1},
        {"n_inner": 72, "offset_alibi": 100, "attention_softmax_in_fp32": False},
        {"tie_word_embeddings": ABSENT},
    ],
    "falcon_new": [{"num_ln_in_parallel_attn": count} for count in (None, ABSENT, 0, 1, 3)]
    + [{"multi_query": False}, {"parallel_attn": False}, {"num_kv_heads": None}],
    "opt": [{"activation_function": name} for name in PLAIN]
    + [{"word_embed_proj_dim": value} for value in (None, ABSENT)]
    + [{"enable_bias": ABSENT}, {"enable_bias": None}, {"tie_word_embeddings": ABSENT}, {"activation_dropout": 0.5}],
    "gemma": [{**NO_ROPE, **rope} for rope in ROPE]
    + HEADS
    + [{"hidden_act": name, "hidden_activation": other} for name in ("gelu", "relu") for other in (None, "silu")]
    + [{"hidden_act": ABSENT}, {"use_bidirectional_attention": None}, {"use_bidirectional_attention": ABSENT}],
    "gemma3_text": [
        {**NO_ROPE, **more}
        for more in (
            {},
            {"rope_theta": 300.0, "rope_local_base_freq": 50.0},
            {"rope_theta": 300.0, "rope_scaling": LINEAR},
            {"rope_scaling": {"type": "linear", "factor": 3.0}},
            {"rope_parameters": {"full_attention": {**PARAMETERS, **LINEAR}}, "rope_local_base_freq": 50.0},
            {"rope_parameters": {"sliding_attention": PARAMETERS}, "rope_theta": 300.0},
            {"rope_parameters": {"full_attention": LINEAR}, "rope_scaling": {"factor": 2.0, "rope_theta": 30.0}},
            {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": LINEAR}},
            {"rope_parameters": {"sliding_attention": PARAMETERS}, "rope_scaling": LINEAR},
            {"rope_theta": None},
        )
    ]
    + [
        {"layer_types": ABSENT},
        {"layer_types": None, "sliding_window_pattern": 2},
        {"layer_types": ABSENT, "sliding_window_pattern": None},
        {"layer_types": ["full_attention"] * 3},
        {"query_pre_attn_scalar": ABSENT},
        {"query_pre_attn_scalar": 168},
        {"attn_logit_softcapping": None, "final_logit_softcapping": ABSENT},
        {"use_bidirectional_attention": None},
    ],
    "deepseek_v3": [{**NO_ROPE, **rope} for rope in ROPE]
    + [{"num_key_value_heads": None}, {"norm_topk_prob": None}, {"norm_topk_prob": ABSENT}, {"rope_interleave": None}]
    + [{"n_routed_experts": ABSENT, "num_local_experts": 8}, {"scoring_func": "softmax", "moe_layer_freq": 1}],
    "t5": functions(T5_FUNCTIONS) + T5_TIES,
    "t5_v1_1": [*functions(T5_GATED, "gated-"), {"feed_forward_proj": ABSENT}, {"feed_forward_proj": "gated-silu"}],
    "gpt2": [{"activation_function": name} for name in PLAIN] + [{"n_inner": ABSENT}, {"tie_word_embeddings": ABSENT}],
    "roberta": [{"tie_word_embeddings": ABSENT}, {"hidden_act": ABSENT}, {"hidden_act": "gelu_python"}],
    "xlm_roberta": [{"tie_word_embeddings": ABSENT}, {"output_past": True, "position_embedding_type": "absolute"}],
    "bert": [{"hidden_act": name} for name in PLAIN] + [{"tie_word_embeddings": ABSENT}],
    "gpt_neo": [
        {"attention_layers": ABSENT, "attention_types": [[["global"], 3]]},
        {"attention_types": [[["global"], 3]]},
        {"attention_types": None},
    ],
    "modernbert": [
        {**NO_ROPE, "layer_types": ABSENT, **more}
        for more in (
            {},
            {"global_rope_theta": 300.0, "local_rope_theta": 50.0, "global_attn_every_n_layers": 2},
            {"rope_scaling": {"rope_theta": 77.0, "rope_type": "default"}},
            {"rope_parameters": {"full_attention": PARAMETERS}, "local_rope_theta": 50.0},
        )
    ],
}
"""Changes of a case's config.json that transformers reads."""
QUICK: dict[str, list[Values]] = {
    "llama": [*({**NO_ROPE, **ROPE[number]} for number in (0, 4, 5, 11, 13)), HEADS[-1]],
    "gpt_neox": [{**NO_ROPE, "rotary_pct": 0.4, "rotary_emb_base": 300, "rope_theta": 9.0}],
    "t5_v1_1": functions(["silu", "relu"], "gated-"),
    "t5": functions(["silu"]),
    "gpt_neo": BOTH["gpt_neo"][1:2],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The directory of a case, and what its config.json says; each is made once."""
    made: dict[str, tuple[Path, Values]] = {}

    def directory(name: str) -> tuple[Path, Values]:
        if name not in made:
            folder = save(reference(name), tmp_path_factory.mktemp(name) / "hf")
            made[name] = folder, json.loads((folder / "config.json").read_text())
        return made[name]

    return directory


def theirs(name: str, folder: Path) -> nn.Module | None:
    """transformers' model; None where it refuses the directory, or would draw a part of the model."""
    try:
        model, info = getattr(transformers, CASES[name][0]).from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
    except Exception:
        return None
    return None if any(info.values()) else model.eval()


def ours(folder: Path) -> Transformer | str:
    """Our model, or what is said in its place."""
    shutil.rmtree(folder.parent / "ours", ignore_errors=True)
    try:
        import_directory(folder, folder.parent / "ours", tokenizer=BYTES)
    except UserError as error:
        return str(error)
    return load_model(folder.parent / "ours").model.eval()


def changed(values: Values, change: Values) -> Values:
    found = {**copy.deepcopy(values), **change}
    return {key: value for key, value in found.items() if value != ABSENT}


def differences(name: str, folder: Path, values: Values, must_read: bool) -> str | None:
    """What is wrong with how the directory is read under a config.json."""
    (folder / "config.json").write_text(json.dumps(values))
    own, other = ours(folder), theirs(name, folder)
    if other is None:
        return None if isinstance(own, str) and not must_read else "transformers refuses it"
    if isinstance(own, str):
        return f"refused: {own}" if must_read else None
    with torch.no_grad():
        logits, expected = both_logits(name, own, other, None)
    close = torch.allclose(logits[..., :VOCAB], expected, rtol=1e-4, atol=1e-4 * max(1.0, expected.abs().max() / 10))
    return None if close else f"differs by {(logits[..., :VOCAB] - expected).abs().max():.3g}"


@pytest.mark.parametrize("name", QUICK)
def test_older_and_newer_forms_give_the_same_logits(name: str, saved: Any) -> None:
    folder, values = saved(name)
    for change in QUICK[name]:
        assert differences(name, folder, changed(values, change), must_read=True) is None, change


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_all_forms_give_the_same_logits(name: str, saved: Any) -> None:
    folder, values = saved(name)
    for change in BOTH[name]:
        (folder / "config.json").write_text(json.dumps(changed(values, change)))
        readable = theirs(name, folder) is not None
        assert differences(name, folder, changed(values, change), must_read=readable) is None, change


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "mixtral", "olmo2", "granite"])
def test_null_means_a_key_for_each_query(name: str, tmp_path: Path) -> None:
    """num_key_value_heads of null, where transformers takes it; where it is absent, some classes have a number."""
    torch.manual_seed(3)
    config = config_of(name)
    config.num_key_value_heads = config.num_attention_heads
    model = randomized(name, getattr(transformers, CASES[name][0])(config))
    folder = save(model, tmp_path / "hf")
    values = json.loads((folder / "config.json").read_text())
    readable = name in ("llama", "qwen3", "olmo2", "granite")
    assert differences(name, folder, {**values, "num_key_value_heads": None}, must_read=readable) is None
    readable = name in ("llama", "olmo2", "granite")  # the default of the others is not the number of this small model
    (folder / "config.json").write_text(json.dumps(changed(values, {"num_key_value_heads": ABSENT})))
    assert (theirs(name, folder) is not None) == (not isinstance(ours(folder), str)) == readable


def paths(values: Values, within: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*within, key)
        if isinstance(value, dict):
            yield from paths(value, (*within, key))


def without(values: Values, path: tuple[str, ...], null: bool) -> Values:
    """A copy in which a key is null or absent."""
    found = copy.deepcopy(values)
    place = found
    for key in path[:-1]:
        place = place[key]
    if null:
        place[path[-1]] = None
    else:
        del place[path[-1]]
    return found


IGNORED_NULLS = {
    "dtype", "use_cache", "transformers_version", "initializer_factor", "initializer_cutoff_factor", "is_decoder",
    "add_cross_attention", "is_encoder_decoder", "pretraining_tp", "output_router_logits", "router_jitter_noise",
    "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx", "architectures", "classifier_pooling",
    "deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "summary_type", "summary_use_proj",
    "summary_proj_to_labels",
}  # fmt: skip
"""Keys without a part in the logits of these models, which transformers refuses to be null."""


@pytest.mark.slow
@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_is_absent_or_null(name: str, null: bool, saved: Any) -> None:
    """What we read has transformers' logits; what it refuses we refuse as well."""
    folder, values = saved(name)
    for path in paths(values):
        if path[-1] == "model_type" or "token_id" in path[-1]:
            continue
        if null and (path[-1] in IGNORED_NULLS or "dropout" in path[-1] or path[-1].endswith("pdrop")):
            continue
        assert differences(name, folder, without(values, path, null), must_read=False) is None, path


SENTENCES: list[tuple[str, Values, str]] = [
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling.type is 'dynamic'"),
    ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type is 'longrope', but"),
    ("llama", {"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type is ['yarn'], but must be a te"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing, but must be a finite number"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor is 0.5, but a stretch"),
    ("llama", {"rope_scaling": {**LLAMA3, "low_freq_factor": None}}, "rope_scaling.low_freq_factor is null, but must"),
    ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "rope_scaling.low_freq_factor is 1.0 and high"),
    ("llama", {"rope_scaling": ["linear", 2]}, "rope_scaling is ['linear', 2], but must be an object; repair it"),
    ("llama", {"rope_parameters": {**PARAMETERS, "partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_fac"),
    ("llama", {"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta is null, but transformers"),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, but must be a finite number; repair it"),
    ("llama", {"hidden_size": 10**30}, f"hidden_size is {10**30}, but should be less than or"),
    ("llama", {"num_hidden_layers": 10_000}, "holds 30 tensors, too few for the 10000 layers of its config.json"),
    ("mixtral", {"num_local_experts": 2**20}, "too few for the 3 layers with 1048576 experts of its config.json"),
    ("mixtral", {"num_experts_per_tok": 9}, "but per_token (9) exceeds count (5) experts; repair it"),
    ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True, but must be a whole number; repair it"),
    ("llama", {"mlp_bias": "yes"}, "mlp_bias is 'yes', but must be true or false; repair it"),
    ("llama", {"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', but llmscale reads"),
    ("llama", {"model_type": ["llama"]}, "model_type is ['llama'], but llmscale reads"),
    ("qwen3", {"head_dim": None}, "head_dim is null, but transformers' class needs a value; give one, or remove"),
    ("qwen3", {"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, but must be 1 to 10000; repair it"),
    ("qwen3", {"layer_types": [1]}, "layer_types must be a list of texts, but is [1]; repair it"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0, but should be greater than or equal to 2"),
    ("gpt_neo", {"attention_layers": ABSENT, "attention_types": [[["global"], 10**12]]}, "attention_types gives 4 lay"),
    ("gpt_neo", {"attention_layers": ABSENT, "attention_types": [["global", 3]]}, "attention_types has ['global', 3]"),
    ("gptj", {"rotary_dim": None}, "rotary_dim is null, but transformers' class needs a value"),
    ("gptj", {"n_head": 0}, "rotary_dim (4) must be 1 to the 0 channels of a head; repair config.json"),
    ("t5", {"feed_forward_proj": "a-b-c"}, "feed_forward_proj is 'a-b-c', but must be a function or gated-FUNCTION"),
    ("t5", functions(["mish"])[0], "feed_forward_proj is 'mish', but llmscale knows gelu,"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before is False, but llmscale has it True only; import a"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False, but llmscale has it"),
    ("opt", {"word_embed_proj_dim": 20}, "word_embed_proj_dim is 20, but llmscale's embeddings are as wide as hidden_"),
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True, but llmscale has it False only;"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm is True, but llmscale has it False only; import a model without it"),
    ("phi", {"qk_layernorm": None}, "qk_layernorm is null, but transformers' class needs a value; give one, or remove"),
    ("phi", {"head_dim": None}, "head_dim is null, but must be a whole number; give it"),
    ("glm4", {"head_dim": None}, "head_dim is null, but transformers' class needs a value; give one, or remove"),
    ("glm4", {"num_key_value_heads": None}, "num_key_value_heads is null, but transformers' class needs a value; give"),
    ("glm4", {"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type is 'longrope', but llmscale knows"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True, but llmscale has it False"),
    ("gemma", {"hidden_act": None}, "hidden_act is null, but transformers' class needs a value; give one, or remove"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, but llmscale has it None only"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True, but llmscale has"),
    ("gemma3_text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0, but must be 1 or more; repair it"),
    ("gemma3_text", {"sliding_window": None}, "sliding_window is null, but transformers' class needs a value; give"),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {**LINEAR, "factor": 2.0}}},
        "rope_parameters.sliding_attention stretches by 2.0 (linear), but llmscale stretches local layers as global",
    ),
    ("deepseek_v3", {"n_shared_experts": 0}, "n_shared_experts is 0, but transformers' class computes with 1 or more"),
    ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2, but latent attention has 4 there; repair"),
    ("deepseek_v3", {"head_dim": 16}, "head_dim is 16, but latent attention has 6 there; repair it"),
    ("deepseek_v3", {"n_group": 3}, "groups (3) must be equal parts of count (8) experts, of 2 or more each"),
    ("deepseek_v3", {"topk_group": 9}, "groups_per_token (9) exceeds groups (4)"),
    ("deepseek_v3", {"num_experts_per_tok": 5}, "per_token (5) exceeds the 4 experts of groups_per_token (2) groups"),
    ("llama", {"rope_scaling": {**YARN, "truncate": False}}, "rope_scaling.truncate is False, but llmscale has it"),
    ("llama", {"rope_scaling": {**YARN, "beta_fast": 1}}, "but fast_turns (1.0) must be above slow_turns (1.0)"),
    ("falcon", {"alibi": True}, "alibi is true, but transformers rounds Falcon's biases by distance to bf16, which"),
    ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn is 2, but transformers' class computes only 1"),
    ("falcon_new", {"parallel_attn": False}, "parallel_attn is false, which transformers' class cannot compute; set"),
    ("falcon_serial", {"num_kv_heads": 2}, "num_kv_heads is 2, but must be num_attention_heads (4) where new_decoder"),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact is true with pretraining_tp 2, by which"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm is true"),
    ("bloom", {"num_attention_heads": None}, "num_attention_heads is null, but transformers' class needs a value; "),
    ("roberta", {"pad_token_id": 24}, "pad_token_id is 24, but must be 0 to 23, since the max_position_embeddings "),
    ("roberta", {"pad_token_id": None}, "pad_token_id is null, but transformers' class needs a value"),
    ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu', but RoBERTa's head has gelu, and llmscale the same"),
    ("modernbert", {"layer_types": ABSENT, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers is 0, but"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "says"), SENTENCES)
def test_a_wrong_value_is_named_as_the_file_has_it(name: str, change: Values, says: str, saved: Any) -> None:
    folder, values = saved(name)
    (folder / "config.json").write_text(json.dumps(changed(values, change)))
    said = ours(folder)
    assert isinstance(said, str)
    assert says in said
    assert "\n" not in said
    assert len(said) < 700


WRONG: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, -1.5, 1e308, float("nan"), "", "x", "3", [], [None], [[["global"], 10**12]], {},
    {"a": 1}, {"rope_type": ["x"]}, {"type": "linear", "factor": "2"}, {"full_attention": 3}, {"rope_theta": 0},
    ["full_attention"] * 3, "\ud800",
)  # fmt: skip
MORE_KEYS = ("layer_types", "rope_scaling", "rope_theta", "partial_rotary_factor", "quantization_config", "head_dim")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name in families.NAMES])
def test_no_config_ends_with_a_traceback(name: str, saved: Any) -> None:
    folder, values = saved(name)
    for number, key in enumerate((*values, *MORE_KEYS), start=NAMES.index(name)):
        # Some of them for each key: a key of many families meets all.
        for wrong in WRONG[number % 7 :: 7]:
            (folder / "config.json").write_text(json.dumps({**values, key: wrong}))
            said = ours(folder)  # anything but a UserError fails
            assert not isinstance(said, str) or ("\n" not in said and "of the wrong kind" not in said), (key, wrong)
