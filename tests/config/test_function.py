"""Which settings change what given weights compute, against models that compute it."""

from typing import Any

import pytest
import torch

from llmscale.config import ModelConfig
from llmscale.config.function import function_differences
from llmscale.model import Transformer

BASE: dict[str, Any] = {
    "layers": 2, "hidden_size": 32, "heads": 4, "ffn_size": 48, "max_positions": 32, "vocab_size": 50,
}  # fmt: skip
ROTARY = {"positions": "rotary"}
RELATIVE = {"positions": "relative"}
LOCAL = {"attention_pattern": ["global", "local"], "window": 4}
EXPERTS = {"count": 4, "per_token": 2, "ffn_size": 48}
SCALING = {"kind": "llama3", "factor": 8, "original_positions": 16}
SAME_SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "heads": ({}, {"heads": 8}),
    "kv_heads": ({}, {"kv_heads": 4}),
    "head_size": ({}, {"head_size": 8}),
    "ffn_size": ({"ffn_size": None}, {"ffn_size": 128}),
    "architecture": ({}, {"architecture": "encoder"}),
    "positions": (ROTARY, {"positions": "alibi"}),
    "positions, fixed": (ROTARY, {"positions": "sinusoidal"}),
    "max_positions": (ROTARY, {"max_positions": 64}),
    "rotary_base": (ROTARY, {"rotary_base": 500.0}),
    "rotary_base without": ({}, {"rotary_base": 500.0}),
    "rotary_local_base": ({**ROTARY, **LOCAL}, {"rotary_local_base": 500.0}),
    "rotary_local_base without": (ROTARY, {"rotary_local_base": 500.0}),
    "rotary_local_base the same": ({**ROTARY, **LOCAL}, {"rotary_local_base": 10000.0}),
    "rotary_fraction": (ROTARY, {"rotary_fraction": 0.5}),
    "rotary_interleaved": (ROTARY, {"rotary_interleaved": True}),
    "rotary_pattern": (ROTARY, {"rotary_pattern": [True, False]}),
    "rotary_pattern without": ({}, {"rotary_pattern": [True, False]}),
    "rotary_pattern the same": (ROTARY, {"rotary_pattern": [True, True]}),
    "rotary_scaling": (ROTARY, {"rotary_scaling": SCALING}),
    "rotary_scaling.magnitude": (
        {**ROTARY, "rotary_scaling": {**SCALING, "kind": "yarn"}},
        {"rotary_scaling": {**SCALING, "kind": "yarn", "magnitude": 1.2}},
    ),
    "rotary_scaling.magnitude without": (
        {**ROTARY, "rotary_scaling": SCALING},
        {"rotary_scaling": {**SCALING, "magnitude": 1.2}},
    ),
    "rotary_scaling.factor": ({**ROTARY, "rotary_scaling": SCALING}, {"rotary_scaling": {**SCALING, "factor": 2}}),
    "relative_max_distance": (RELATIVE, {"relative_max_distance": 17}),
    "relative_max_distance without": ({}, {"relative_max_distance": 17}),
    "attention_pattern": (LOCAL, {"attention_pattern": ["local"]}),
    "attention_pattern, longer": (LOCAL, {"attention_pattern": ["global", "local", "local"]}),
    "rotary_base, of local layers": (
        {**LOCAL, "attention_pattern": ["local"], "positions": "rotary"},
        {"rotary_base": 50.0},
    ),
    "rotary_scaling, of local layers": (
        {**LOCAL, "attention_pattern": ["local"], "positions": "rotary"},
        {"rotary_scaling": {"factor": 4.0}},
    ),
    "rotary_local_scaled": (
        {**ROTARY, **LOCAL, "rotary_scaling": SCALING},
        {"rotary_local_scaled": False},
    ),
    "rotary_local_scaled without": ({**ROTARY, **LOCAL}, {"rotary_local_scaled": False}),
    "norm_plus_one": ({"norm": "rmsnorm"}, {"norm_plus_one": True}),
    "embedding_multiplier, of the size": ({"embedding_multiplier": 8.0}, {"embedding_multiplier": "sqrt"}),
    "embedding_multiplier the same": ({"embedding_multiplier": 32**0.5}, {"embedding_multiplier": "sqrt"}),
    "window": (LOCAL, {"window": 6}),
    "window without": ({}, {"window": 6}),
    "attention_scale": ({}, {"attention_scale": 1.0}),
    "attention_scale the same": ({}, {"attention_scale": 8**-0.5}),
    "norm": ({"norm_bias": False}, {"norm": "rmsnorm"}),
    "norm_eps": ({}, {"norm_eps": 0.1}),
    "norm_bias": ({}, {"norm_bias": True}),
    "qkv_bias": ({}, {"qkv_bias": True}),
    "attention_output_bias": ({}, {"attention_output_bias": True}),
    "parallel_residual": ({}, {"parallel_residual": True}),
    "activation": ({}, {"activation": "relu"}),
    "activation, gated": ({"activation": "swiglu"}, {"activation": "geglu"}),
    "embedding_multiplier": ({}, {"embedding_multiplier": 3.0}),
    "residual_multiplier": ({}, {"residual_multiplier": 0.3}),
    "head_divisor": ({}, {"head_divisor": 4.0}),
    "scaled_head": ({}, {"scaled_head": True}),
    "dropout": ({}, {"dropout": 0.1}),
    "attention_dropout": ({}, {"attention_dropout": 0.1}),
    "dropout_scheme": ({"dropout": 0.1}, {"dropout_scheme": "t5"}),
    "init_std": ({}, {"init_std": 0.1}),
    "init_scheme": ({}, {"init_scheme": "fan_in"}),
    "experts.per_token": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "per_token": 1}}),
    "experts.scale": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "scale": 2.0}}),
    "experts.groups": (
        {"experts": {**EXPERTS, "scoring": "sigmoid"}},
        {"experts": {**EXPERTS, "scoring": "sigmoid", "groups": 2}},
    ),
    "experts.normalize": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "normalize": False}}),
    "experts.ffn_size": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "ffn_size": None}}),
    "experts.capacity_factor": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "capacity_factor": 0.5}}),
    "experts.balance_weight": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "balance_weight": 1.0}}),
    "experts.z_weight": ({"experts": EXPERTS}, {"experts": {**EXPERTS, "z_weight": 1.0}}),
    "family": ({}, {"family": "gpt2"}),
}
OTHER_SHAPES = {
    "lora",
    *("layers", "encoder_layers", "hidden_size", "vocab_size", "vocab_multiple", "relative_buckets"),
    *("query_key_norm", "query_key_norm_over", "norm_order", "embedding_norm", "first_norm", "shared_norm"),
    *("bias", "position_offset", "latent", "head_bias", "head", "head_transform", "tied_embeddings", "token_types"),
    *("next_sentence", "query_layer"),
}
"""Settings with which tensors come and go, or change their shapes."""


@torch.no_grad()
def outputs(config: ModelConfig, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    model = Transformer(config, 50).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes == {name: weight.shape for name, weight in weights.items()}
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(1))
    return model.head(model(tokens).hidden)[..., :50]


@pytest.mark.parametrize("case", SAME_SHAPES)
def test_what_changes_the_function_is_found_and_nothing_else(case: str) -> None:
    base, change = SAME_SHAPES[case]
    theirs, ours = ModelConfig(**{**BASE, **base}), ModelConfig(**{**BASE, **base, **change})
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(parameter.shape, generator=draw) * 0.2 + 0.1
        for name, parameter in Transformer(theirs, 50).named_parameters()
    }
    same = torch.allclose(outputs(ours, weights), outputs(theirs, weights), rtol=1e-4, atol=1e-5)
    differences = function_differences(ours, theirs)
    assert bool(differences) is not same, differences
    if differences:
        assert all(key.startswith("model.") and mine != other for key, (mine, other) in differences.items())
        setting = case.split(",", maxsplit=1)[0]
        assert any(key.startswith(f"model.{setting}") for key in differences), differences


def test_no_setting_is_forgotten() -> None:
    named = {case.split(",")[0].split(" ")[0].split(".")[0] for case in SAME_SHAPES}
    assert named | OTHER_SHAPES == set(ModelConfig.model_fields)
