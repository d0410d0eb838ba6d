"""Tensor parallelism: the same losses and norms as plain torch in one process, from the same start."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from llmscale.config import RunConfig
from llmscale.distributed.process_group import join, leave, read_world
from llmscale.model import skeleton
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.parameters import slice_of
from llmscale.slices.tensor_slice import TensorSlice
from llmscale.train.build import build_grid
from tests.engine.cases import VOCAB, Figures, build, case_config, plain_torch, train_on_rank
from tests.ranks import run_ranks
from tests.systems import cases as twins

TOLERANCE = 1e-5
"""Relative, of losses and gradient norms in fp32 over five steps."""
SGD = {"optimizer__name": "sgd", "optimizer__lr": 0.3}
# 62 tokens in a vocabulary of 64, so that the last rank has rows that are padding.
DECODER = {"model__hidden_size": 32, "model__heads": 4, "model__kv_heads": 2, "model__ffn_size": 72,
           "model__vocab_multiple": 8}  # fmt: skip
LATENT = "{query_rank: 20, key_value_rank: 16, rotary_size: 4, plain_size: 6, value_size: 8}"
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": DECODER,
    "llama": {**DECODER, "model__family": "llama", "model__tied_embeddings": False},
    "olmo2": {**DECODER, "model__family": "olmo2"},
    "olmo2 with one key head": {**DECODER, "model__family": "olmo2", "model__kv_heads": 1},
    "gemma3_text": {**DECODER, "model__family": "gemma3_text", "model__head_size": 8, "model__window": 7},
    # The plain loop leaves out the router's loss.
    "deepseek_v3": {
        **DECODER, "model__family": "deepseek_v3", "model__kv_heads": "null", "model__latent": LATENT,
        "model__experts": "{count: 8, per_token: 2, ffn_size: 64, scoring: sigmoid, groups: 4, groups_per_token: 2,"
        " scale: 2.5, shared: 1, first_dense: 1, balance_weight: 0}",
    },
    "latent attention of hidden states": {
        **DECODER, "model__family": "deepseek_v3", "model__kv_heads": "null", "model__experts": "null",
        "model__latent": LATENT.replace("20", "null"), "model__qkv_bias": True,
    },
    "one key head": {**DECODER, "model__kv_heads": 1},
    "dropout": {**DECODER, "model__dropout": 0.1, "model__attention_dropout": 0.1},
}  # fmt: skip
# (ranks, ZeRO stage, tensor-parallel size, by positions, recompute, optimizer).
LAYOUTS = {
    2: [
        (1, 2, False, "none", SGD), (2, 2, True, "block", SGD),
        (1, 2, True, "selective", {}), (3, 2, True, "none", SGD),
    ],
    4: [(1, 4, True, "none", SGD), (2, 2, False, "none", {}), (1, 2, True, "block", SGD), (3, 4, False, "block", {})],
}  # fmt: skip


def layout(
    model: str, stage: int, tensor: int, sequence_parallel: bool, recompute: str, optimizer: dict[str, Any]
) -> RunConfig:
    return case_config(
        **{**MODELS[model], **optimizer}, engine__zero_stage=stage, parallel__tensor=tensor,
        parallel__sequence_parallel=sequence_parallel, engine__activation_checkpointing=recompute, train__micro_batch=2,
    )  # fmt: skip


@cache
def expected(model: str, sgd: bool) -> list[Figures]:
    return plain_torch(case_config(**{**MODELS[model], **(SGD if sgd else {})}))[0]


# A case for each layout, so that they can be spread over processes.
@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "number"), [(ranks, number) for ranks in LAYOUTS for number in range(4)])
def test_tensor_parallel_ranks_train_as_plain_torch(ranks: int, number: int) -> None:
    how = LAYOUTS[ranks][number]
    results = run_ranks(ranks, train_on_rank, [layout(model, *how) for model in MODELS])
    clip = case_config().optimizer.clip
    for place, model in enumerate(MODELS):
        wanted = expected(model, how[-1] is SGD)
        for rank in results:
            assert rank[place] == [pytest.approx(row, rel=TOLERANCE) for row in wanted], model
        assert how[-1] is not SGD or all(norm > clip for _, norm in wanted)


# Every family of the twins that differs in what its table cuts.
FAMILIES = {
    "gpt3_175b": ("model.heads=8",),
    "gpt_j_6b": ("model.heads=4", "model.rotary_fraction=0.5"),
    "gpt_neox_20b": ("model.heads=4", "model.rotary_fraction=0.5"),
    "bert_base": (),
    "t5_base": ("model.heads=4", "model.hidden_size=32"),
    "pangu_alpha_200b": (),
    "wu_dao_2": ("model.experts={count: 8, every: 2, capacity_factor: 0.5, balance_weight: 0.5, z_weight: 0.1}",),
    "mixtral_8x7b": ("model.kv_heads=2",),
    "qwen3_8b": (),
    "gpt_neo_2_7b": ("model.positions=alibi", "model.heads=4"),
}


def family(name: str, *overrides: str) -> RunConfig:
    # One row of the vocabulary is padding, and there is none at a multiple of 1.
    return twins.twin(name, *FAMILIES[name], "model.vocab_multiple=8", "data.sequence_length=24", *overrides)


@pytest.mark.parametrize("sequence_parallel", [pytest.param(False, marks=pytest.mark.slow), True])
def test_every_family_trains_as_plain_torch(sequence_parallel: bool) -> None:
    ranks = {name: 4 if name in ("gpt3_175b", "qwen3_8b", "bert_base") else 2 for name in FAMILIES}
    for count in (2, 4):
        names = [name for name in FAMILIES if ranks[name] == count]
        where = ("parallel.tensor=" + str(count), f"parallel.sequence_parallel={str(sequence_parallel).lower()}")
        results = run_ranks(count, twins.train_on_rank, [family(name, *where) for name in names])
        for number, name in enumerate(names):
            expected, _ = twins.plain_torch(family(name))
            for rank in results:
                assert rank[number] == [pytest.approx(row, rel=TOLERANCE) for row in expected], name


def parts_on_rank(configs: list[RunConfig]) -> list[dict[str, tuple[TensorSlice, Any]]]:
    """What a rank has of every parameter of some models."""
    join(read_world("cpu"))
    found = []
    for config in configs:
        model = build(config, build_grid(config, read_world("cpu")))
        found.append({name: (slice_of(value), value.detach().numpy()) for name, value in model.named_parameters()})
    leave()
    return found


def test_every_rank_starts_from_its_part_of_the_same_weights() -> None:
    """The parts are those of the whole model's values, and cover it; what several ranks have, one speaks for."""
    changes = [
        {"model__experts": "{count: 4}", "model__bias": True},
        {"model__kv_heads": 1},
        {"model__tied_embeddings": False},
    ]
    configs = [case_config(**{**DECODER, **change}, parallel__tensor=4) for change in changes]
    results = run_ranks(4, parts_on_rank, configs)
    for number, config in enumerate(configs):
        whole = dict(build(config).named_parameters())
        for name, expected in whole.items():
            covered = torch.zeros(expected.shape, dtype=torch.int64)
            for rank in results:
                shard, values = rank[number][name]
                assert shard.shape == tuple(expected.shape)
                place = tuple(slice(low, low + size) for low, size in zip(shard.offsets, shard.sizes, strict=True))
                assert np.array_equal(values, expected[place].detach().numpy()), name
                covered[place] += shard.first
            assert (covered == 1).all(), name
        held = sum(values.size for _, values in results[0][number].values())
        assert held < 0.5 * sum(value.numel() for value in whole.values())


def test_one_rank_has_the_plain_model() -> None:
    config = case_config(**DECODER)
    plain = skeleton(config.model, VOCAB)
    alone = init.build(config.model, VOCAB, 1, grid=RankGrid())
    assert [(name, type(module)) for name, module in alone.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert not any(hasattr(parameter, "tensor_slice") for parameter in alone.parameters())
    assert all(
        type(module).__module__.startswith(("llmscale.model", nn.__name__, "torch")) for module in alone.modules()
    )
