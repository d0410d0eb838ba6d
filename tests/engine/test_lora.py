"""Low-rank factors in the engine: training them equals plain torch with the weights written out, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from llmscale.checkpoint import newest_intact
from llmscale.config import RunConfig
from llmscale.engine.schedule import learning_rate
from llmscale.parallel import init
from tests.engine.cases import (
    STEPS,
    VOCAB,
    Figures,
    case_config,
    global_batch,
    resume_all_on_rank,
    save_all_on_rank,
    train_on_rank,
)
from tests.ranks import run_ranks

SGD = {"optimizer__name": "sgd", "optimizer__lr": 3.0, "optimizer__weight_decay": 0.0}
LORA = "{rank: 4, alpha: 6, targets: [all]}"
DORA = "{rank: 4, alpha: 6, rslora: true, dora: true, targets: [all]}"
SOME = "{rank: 3, targets: [key, blocks.1.feed_forward.*]}"
EXPERTS = {"model__experts": "{count: 4, per_token: 2, balance_weight: 0.0}"}


def config(lora: str, **changes: Any) -> RunConfig:
    shape = {
        "model__hidden_size": 32,
        "model__heads": 4,
        "model__kv_heads": 2,
        "model__ffn_size": 64,
        "model__vocab_multiple": 2,
    }
    tuned = {"finetune__lora": lora, "train__init_from": "other"}
    return case_config(**{**shape, **tuned, "optimizer__clip": 0.01, **changes})


def expected(case: RunConfig) -> tuple[list[Figures], dict[str, Tensor]]:
    """A plain loop over the factors of plain weights, as LoRA's and DoRA's papers have them; and their values."""
    lora = case.model.lora
    assert lora is not None
    base = init.build(case.model.plain, VOCAB, case.run.seed).requires_grad_(False)
    weights = dict(base.named_parameters())
    drawn = dict(init.build(case.model, VOCAB, case.run.seed).named_parameters())
    layers = [name.removesuffix(".lora_a") for name in drawn if name.endswith(".lora_a")]
    scale = lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
    trained: dict[str, Tensor] = {}
    for layer in layers:
        weight = weights[f"{layer}.weight"]
        trained[f"{layer}.lora_a"] = drawn[f"{layer}.lora_a"].detach().clone()
        trained[f"{layer}.lora_b"] = torch.zeros(*weight.shape[:-1], lora.rank)
        if lora.dora:
            trained[f"{layer}.magnitude"] = torch.linalg.norm(weight, dim=-1)
    for value in trained.values():
        value.requires_grad_(True)
    optimizer = optimizer_of(case, trained)
    figures = []
    for step in range(STEPS):
        whole = {}
        for layer in layers:
            weight = weights[f"{layer}.weight"] + scale * trained[f"{layer}.lora_b"] @ trained[f"{layer}.lora_a"]
            if lora.dora:
                length = torch.linalg.norm(weight, dim=-1, keepdim=True).detach()
                weight = trained[f"{layer}.magnitude"][..., None] * weight / length
            whole[f"{layer}.weight"] = weight
        batch = global_batch(step)
        hidden = functional_call(base, whole, (batch.inputs,)).hidden
        logits = base.head(hidden)[..., :VOCAB]
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(list(trained.values()), case.optimizer.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(case.schedule, case.optimizer.lr, case.train.steps, step)
        optimizer.step()
        figures.append((loss.item(), norm.item()))
    return figures, {name: value.detach() for name, value in trained.items()}


def optimizer_of(case: RunConfig, trained: dict[str, Tensor]) -> torch.optim.Optimizer:
    if case.optimizer.name == "sgd":
        return torch.optim.SGD(list(trained.values()), lr=1.0)
    matrices = [value for name, value in trained.items() if not name.endswith("magnitude")]
    vectors = [value for name, value in trained.items() if name.endswith("magnitude")]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=1.0, betas=case.optimizer.betas, eps=case.optimizer.eps
    )


def check(ranks: int, cases: list[tuple[str, dict[str, Any]]], folder: Path) -> None:
    """Train, save, resume in the same layout from other values; beside the plain loop."""
    jobs = [(config(lora, **changes), folder / str(number)) for number, (lora, changes) in enumerate(cases)]
    saved = run_ranks(ranks, save_all_on_rank, jobs, 3, STEPS - 3)[0]
    fresh = [(case.model_copy(update={"run": case.run.model_copy(update={"seed": 99})}), path) for case, path in jobs]
    resumed = run_ranks(ranks, resume_all_on_rank, fresh, 3, STEPS - 3)[0]
    for (case, path), (lora, changes), after, again in zip(jobs, cases, saved, resumed, strict=True):
        assert again == after, f"{lora} {changes}: not exact after a resume"
        figures, _ = expected(case)
        assert min(norm for _, norm in figures) > case.optimizer.clip
        assert figures[-1] != figures[0]
        assert after == [pytest.approx(row, rel=1e-5) for row in figures[3:]], f"{lora} {changes}"
        checkpoint = newest_intact(path)
        for name, parameter in init.build(case.model, VOCAB, case.run.seed).named_parameters():
            factor = name.rpartition(".")[2] in ("lora_a", "lora_b", "magnitude")
            assert torch.equal(checkpoint.full(name), parameter.detach()) != factor, name
            moments = factor and case.optimizer.name == "adamw"
            assert sorted(checkpoint.kinds(name)) == (["exp_avg", "exp_avg_sq", "weight"] if moments else ["weight"])


@pytest.mark.slow
def test_one_process(tmp_path: Path) -> None:
    check(1, [(LORA, SGD), (DORA, {}), (SOME, {"engine__zero_stage": 3})], tmp_path)


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    check(
        2,
        [
            (LORA, {"parallel__tensor": 2, **SGD}),
            (DORA, {"parallel__tensor": 2, **SGD}),
            (DORA, {"parallel__tensor": 2, "parallel__sequence_parallel": "true"}),
            (SOME, {"parallel__tensor": 2, "model__kv_heads": 1, **SGD}),
            (DORA, {"parallel__tensor": 2, "model__kv_heads": 1, **SGD}),
            (LORA, {"parallel__pipeline": 2, **SGD}),
            (DORA, {"parallel__pipeline": 2}),
            (LORA, {"parallel__data": 2, "engine__zero_stage": 3, **SGD}),
            (DORA, {"parallel__data": 2, "engine__zero_stage": 3}),
            (DORA, {"parallel__data": 2, "engine__zero_stage": 2, "engine__activation_checkpointing": "block"}),
            (LORA, {"parallel__context": 2, **SGD}),
            (LORA, {"parallel__expert": 2, "parallel__data": 2, "engine__zero_stage": 2, **EXPERTS, **SGD}),
            (DORA, {"parallel__expert": 2, "parallel__data": 2, "engine__zero_stage": 2, **EXPERTS, **SGD}),
            (DORA, {"parallel__tensor": 2, **EXPERTS, **SGD}),
        ],
        tmp_path,
    )


@pytest.mark.slow
def test_what_is_dropped_does_not_depend_on_the_layout() -> None:
    dropped = "{rank: 4, dropout: 0.3, dora: true, targets: [all]}"
    alone = config(dropped, **SGD)
    (one,) = run_ranks(1, train_on_rank, [alone])[0]
    undropped, _ = expected(config(DORA.replace("rslora: true, ", "").replace("alpha: 6", "alpha: 16"), **SGD))
    assert abs(one[-1][0] - undropped[-1][0]) > 1e-4
    layouts: list[dict[str, Any]] = [
        {"parallel__tensor": 2},
        {"parallel__tensor": 2, "parallel__sequence_parallel": "true"},
        {"parallel__pipeline": 2},
        {"parallel__context": 2},
        {"parallel__data": 2, "engine__zero_stage": 3, "train__micro_batch": 1},
        {"parallel__data": 2, "engine__activation_checkpointing": "block"},
    ]
    found = run_ranks(2, train_on_rank, [config(dropped, **SGD, **layout) for layout in layouts])[0]
    for layout, figures in zip(layouts, found, strict=True):
        assert figures == [pytest.approx(row, rel=1e-5) for row in one], layout


@pytest.mark.slow
def test_bf16_trains_fp32_factors_of_a_base_that_is_kept(tmp_path: Path) -> None:
    case = config(DORA, engine__dtype="bf16", **SGD)
    (after,) = run_ranks(1, save_all_on_rank, [(case, tmp_path)], 3, STEPS - 3)[0]
    figures, _ = expected(case)
    assert [loss for loss, _ in after] == pytest.approx([loss for loss, _ in figures[3:]], rel=1e-2)
    checkpoint = newest_intact(tmp_path)
    for name, parameter in init.build(case.model, VOCAB, case.run.seed).named_parameters():
        whole = checkpoint.full(name)
        if name.endswith(("lora_a", "lora_b", "magnitude")):
            assert not torch.equal(whole.bfloat16().float(), whole), name
        else:
            assert torch.equal(whole, parameter.detach()), name
