"""Counts of parameters: those of the model itself, built on the meta device, for every config and family."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from llmscale import families
from llmscale.config import ModelConfig, load_config
from llmscale.config.lora import LoraConfig
from llmscale.model import Transformer, skeleton
from llmscale.parallel import plans
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.pipeline import keep_stage
from llmscale.plan.parameters import parameters
from llmscale.plan.workload import vocabulary

ROOT = Path(__file__).parents[2]
CONFIGS = [*sorted((ROOT / "configs/systems").rglob("*.yaml")), ROOT / "configs/quickstart.yaml"]
VOCAB = 1000
COLUMN, ROW = ("attention.query", "feed_forward.up", "feed_forward.gate"), ("attention.output", "feed_forward.down")


def model(config: ModelConfig, vocab_size: int) -> Transformer:
    return skeleton(config, vocab_size)


PARTS = (
    (r".*\.(lora_a|lora_b|magnitude)", "factors"),
    (r"(head|next_sentence)\.", "head"),
    (r".*norm\.", "norms"),
    (r"(positions|token_types|queries)\.|.*relative_bias", "positions"),
    (r".*cross_attention\.", "cross_attention"),
    (r".*\.attention\.", "attention"),
    (r".*\.(router\.|correction_bias)", "router"),
    (r".*\.(shared_)?feed_forward\.", "feed_forward"),
    (r"embedding\.weight", "embedding"),
)
"""Part by parameter's name; the first that fits."""


def part(name: str) -> str:
    return next(found for pattern, found in PARTS if re.match(pattern, name))


def by_part(config: ModelConfig, vocab_size: int) -> Counter[str]:
    built = model(config, vocab_size)
    counts: Counter[str] = Counter()
    experts = {name for name, module in built.named_modules() if type(module).__name__ == "ExpertLinear"}
    for name, parameter in built.named_parameters():
        found = "experts" if name.rpartition(".")[0] in experts else part(name)
        counts[found] += parameter.numel()
    return counts


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_has_as_many_parameters_as_its_model(path: Path) -> None:
    config = load_config(path)
    vocab_size = config.model.vocab_size or VOCAB
    assert parameters(config.model, vocab_size) == by_part(config.model, vocab_size)


@pytest.mark.parametrize("family", families.NAMES)
def test_every_family_has_as_many_parameters_as_its_model(family: str) -> None:
    preset = families.preset(family)
    given = {"family": family, "layers": 3, "hidden_size": 64, "heads": 4, "ffn_size": 48}
    given |= {} if "latent" in preset else {"head_size": 16}
    grouped = {"groups": 2, "groups_per_token": 1, "first_dense": 1} if "groups" in preset.get("experts", {}) else {}
    for experts in (
        {"experts": None},
        {"experts": {**preset.get("experts", {}), "count": 4, "per_token": 2, "every": 2, "ffn_size": 24, **grouped}},
    ):
        config = ModelConfig(**given, **(experts if preset.get("architecture") != "encoder_decoder" else {}))
        assert parameters(config, VOCAB) == by_part(config, VOCAB)


def local(config: ModelConfig, name: str, shape: torch.Size, tensor: int) -> int:
    """Elements of a parameter that a tensor-parallel rank holds, by Megatron's rules (Shoeybi et al. 2019)."""
    size = shape.numel()
    module, _, kind = name.rpartition(".")
    if kind == "lora_a" or (kind in ("lora_b", "magnitude") and module.endswith(ROW)):
        return size // tensor if kind == "lora_a" and module.endswith(ROW) else size
    if module.endswith(COLUMN) or name == "embedding.weight" or name in ("head.weight", "head.bias"):
        return size // tensor
    if module.endswith(("attention.key", "attention.value")):
        return size // min(tensor, config.kv_head_count)
    if "relative_bias" in name or (module.endswith(ROW) and kind == "weight"):
        return size // tensor
    return size


@pytest.mark.parametrize("targets", [["all"], ["attention"], ["up", "blocks.1.*"]])
@pytest.mark.parametrize("family", families.NAMES)
def test_factors_are_as_many_as_those_of_the_model(family: str, targets: list[str]) -> None:
    sizes = {"layers": 3, "hidden_size": 64, "heads": 4, "ffn_size": 48}
    sizes |= {} if "latent" in families.preset(family) else {"head_size": 16}
    config = ModelConfig(**{"family": family, **sizes, "lora": {"rank": 3, "dora": True, "targets": targets}})
    assert parameters(config, VOCAB) == by_part(config, VOCAB)


@pytest.mark.parametrize("tensor", [2, 4])
@pytest.mark.parametrize("name", ["llama3_8b", "gpt3_175b", "t5_base", "bert_base", "mixtral_8x7b", "gpt_j_6b"])
@pytest.mark.parametrize("factors", [False, True])
def test_a_tensor_parallel_rank_holds_its_share(name: str, tensor: int, factors: bool) -> None:
    config = load_config(ROOT / f"configs/systems/tiny/{name}.yaml").model
    changes = {"heads": 8, "kv_heads": 2 if config.kv_heads else None, "head_size": 8}
    lora = LoraConfig(rank=4, dora=True) if factors else None
    config = config.model_copy(update={**changes, "lora": lora})
    named = model(config, VOCAB).named_parameters()
    expected = sum(local(config, name, parameter.shape, tensor) for name, parameter in named)
    assert sum(parameters(config, VOCAB, tensor=tensor).values()) == expected


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("tied", [True, False])
def test_stages_hold_the_whole_model_and_a_second_copy_of_tied_weights(stages: int, tied: bool) -> None:
    config = ModelConfig(layers=7, hidden_size=64, heads=4, tied_embeddings=tied)
    whole = parameters(config, VOCAB)
    parts = sum((parameters(config, VOCAB, pipeline=stages, stage=stage) for stage in range(stages)), Counter())
    if tied:
        parts["head"] -= config.padded_vocab(VOCAB) * 64
    assert +parts == whole
    assert [layer for stage in range(stages) for layer in plans.stage_layers(7, stages)[stage]] == list(range(7))


@pytest.mark.parametrize("stages", [2, 3, 5, 7])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"tied_embeddings": False, "norm": "rmsnorm", "positions": "rotary"},
        {"positions": "relative"},
        {"query_layer": True},
        {"family": "bert"},
    ],
)
def test_stages_hold_what_they_are_left_with(stages: int, parts: dict[str, Any]) -> None:
    config = ModelConfig(**{"layers": 7, "hidden_size": 64, "heads": 4, **parts})
    for stage in range(stages):
        model = skeleton(config, VOCAB)
        keep_stage(model, RankGrid(pipeline=stages, rank=stage))
        held = sum(parameter.numel() for parameter in model.parameters())
        assert sum(parameters(config, VOCAB, pipeline=stages, stage=stage).values()) == held


def test_expert_parallel_ranks_share_the_experts_and_nothing_else() -> None:
    config = ModelConfig(family="mixtral", layers=2, hidden_size=64, heads=4, experts={"count": 8})
    whole, own = parameters(config, VOCAB), parameters(config, VOCAB, expert=4)
    assert own["experts"] * 4 == whole["experts"]
    assert {**own, "experts": 0} == {**whole, "experts": 0}


def test_the_bytes_tokenizer_has_the_vocabulary_that_the_config_alone_tells() -> None:
    from data_pipeline.tokenizer import BytesTokenizer

    for objective in ("{name: causal}", "{name: denoising}", "{name: masked}"):
        config = load_config(
            ROOT / "configs/quickstart.yaml", ["data.tokenizer={kind: bytes}", f"objective={objective}"]
        )
        tokenizer = BytesTokenizer()
        roles = config.objective.roles(config.data.sequence_length)
        missing = [role for role in roles if role not in tokenizer.special]
        assert vocabulary(config) == tokenizer.vocab_size + len(missing)
