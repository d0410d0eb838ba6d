"""Losses of answers on ranks beside a plain loop in one process: data, tensor and pipeline parallelism, ZeRO 1 to 3,
micro batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_pipeline.batch import Batch
from llmscale.config import RunConfig
from llmscale.distributed.process_group import all_reduce_sum, join, leave, read_world
from llmscale.engine.engine import accumulation
from llmscale.engine.schedule import learning_rate
from llmscale.objectives.loss import build_loss
from tests.distributed.parts import SGD
from tests.engine.cases import GLOBAL_BATCH, LENGTH, STEPS, VOCAB, build, case_config, open_engine, own_optimizers
from tests.ranks import run_ranks

Figures = tuple[float, ...]
"""Loss and gradient norm of a step; of an evaluation its loss and measures."""

HALF = LENGTH // 2
SIZES: dict[str, Any] = {
    "model__hidden_size": 32, "model__heads": 4, "model__kv_heads": "null", "model__ffn_size": 72,
    "model__vocab_multiple": 8, "train__micro_batch": 2, "data__order": "finite", "train__init_from": "unused",
}  # fmt: skip
OBJECTIVES = {
    "dpo": "{name: preference, beta: 0.5, label_smoothing: 0.1, nll_weight: 0.3}",
    "ipo": "{name: preference, loss: ipo, beta: 0.5}",
    "orpo": "{name: preference, loss: orpo}",
    "kto": "{name: preference, loss: kto, beta: 0.5, undesirable_weight: 1.5}",
    "reward": "{name: reward, center_weight: 0.1}",
}
LAYOUTS: list[dict[str, Any]] = [
    {"engine__zero_stage": 1},
    {"engine__zero_stage": 2},
    {"engine__zero_stage": 3},
    {"parallel__tensor": 2},
    {"parallel__tensor": 2, "parallel__sequence_parallel": True},
    {"parallel__pipeline": 2},
]
"""On two ranks."""


def config_of(name: str, layout: dict[str, Any]) -> RunConfig:
    family = "gpt2" if name in ("dpo", "reward") else "llama"
    return case_config(**{**SIZES, "model__family": family, "objective": OBJECTIVES[name], **SGD, **layout})


def batch_of(name: str, step: int) -> Batch:
    """The global batch of a step: pairs of unequal lengths, of which two are fill."""
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (GLOBAL_BATCH, 2, HALF + 1), generator=draw)
    sizes = torch.randint(3, HALF + 1, (GLOBAL_BATCH, 2, 1), generator=draw)
    starts = (sizes * 0.4).long()
    places = torch.arange(HALF)
    answers = ((places >= starts) & (places < sizes)).long()
    answers[[1, 4]] = -1
    rows = (GLOBAL_BATCH, LENGTH)
    references = -20 - 5 * torch.rand(GLOBAL_BATCH, 2, generator=draw, dtype=torch.float64)
    references[[1, 4]] = torch.nan
    desirable = torch.randint(2, (GLOBAL_BATCH,), generator=draw)
    return Batch(
        tokens[:, :, :-1].reshape(rows),
        tokens[:, :, 1:].reshape(rows),
        (answers[:, 0, :1] >= 0).float(),
        torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH,
        segment_ids=torch.where(places < sizes, torch.tensor([[0], [1]]), -1).reshape(rows),
        positions=places.repeat(GLOBAL_BATCH, 2),
        labels={
            "reward" if name == "reward" else "preference": answers.reshape(rows),
            **({} if name in ("orpo", "reward") else {"reference": references}),
            **({"desirable": desirable} if name == "kto" else {}),
        },
    )


def plain_loss(model: Any, name: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over the pairs, and the means of what is measured: each answer read by itself."""
    kind = "reward" if name == "reward" else "preference"
    answers = batch.labels[kind].reshape(-1, 2, HALF) > 0
    numbers: list[list[Tensor]] = []
    for row in range(batch.size):
        if not answers[row].any():
            continue
        numbers.append([])
        for half in (0, 1):
            last = int(answers[row, half].nonzero()[-1])
            inputs = batch.inputs[row, half * HALF : half * HALF + last + 1][None]
            hidden = model(inputs).hidden
            if name == "reward":
                numbers[-1].append(model.classification(hidden[:, -1])[0, 0].double())
                continue
            scores = model.head(hidden)[0, :, :VOCAB].log_softmax(-1)
            targets = batch.targets[row, half * HALF : half * HALF + last + 1]
            numbers[-1].append((scores[torch.arange(last + 1), targets] * answers[row, half, : last + 1]).sum())
    found = torch.stack([torch.stack(each) for each in numbers]).double()
    known = answers.any(2).any(1)
    sizes = answers[known].sum(2).double()
    if name == "reward":
        margin = found[:, 0] - found[:, 1]
        loss = (1 + (-margin).exp()).log() + 0.1 * found.sum(1) ** 2
        return loss.mean(), {"accuracy": (margin > 0).double().mean(), "margin": margin.mean()}
    if name == "orpo":
        p = (found / sizes).exp()
        odds = (p / (1 - p)).log()
        margin = odds[:, 0] - odds[:, 1]
        loss = -found[:, 0] / sizes[:, 0] + 0.1 * (1 + (-margin).exp()).log()
        return loss.mean(), {"accuracy": (margin > 0).double().mean(), "margin": margin.mean()}
    ratios = found - batch.labels["reference"][known]
    if name == "kto":
        kl = ratios[:, 1].mean().detach()
        desirable = batch.labels["desirable"][known] > 0
        gain = 0.5 * (ratios[:, 0] - kl.clamp(min=0))
        loss = torch.where(desirable, 1 - torch.sigmoid(gain), 1.5 * (1 - torch.sigmoid(-gain)))
        return loss.mean(), {"accuracy": ((gain > 0) == desirable).double().mean(), "kl": kl}
    if name == "ipo":
        ratios = ratios / sizes
        loss = (ratios[:, 0] - ratios[:, 1] - 1 / (2 * 0.5)) ** 2
    else:
        h = 0.5 * (ratios[:, 0] - ratios[:, 1])
        loss = -0.9 * torch.sigmoid(h).log() - 0.1 * torch.sigmoid(-h).log() - 0.3 * found[:, 0] / sizes[:, 0]
    margin = 0.5 * (ratios[:, 0] - ratios[:, 1])
    return loss.mean(), {
        "accuracy": (margin > 0).double().mean(),
        "margin": margin.mean(),
        "chosen_reward": 0.5 * ratios[:, 0].mean(),
        "rejected_reward": 0.5 * ratios[:, 1].mean(),
    }


def plain(name: str, config: RunConfig) -> tuple[list[Figures], Figures]:
    """A plain loop: mean over the pairs, clip, update; and an evaluation of one more batch."""
    model = build(config)
    [optimizer] = own_optimizers(list(model.named_parameters()), config)
    figures = []
    for step in range(STEPS):
        loss, _ = plain_loss(model, name, batch_of(name, step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        for group in optimizer.param_groups:
            rate = learning_rate(config.schedule, config.optimizer.lr, config.train.steps, step)
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        figures.append((loss.item(), norm.item()))
    with torch.no_grad():
        loss, measures = plain_loss(model, name, batch_of(name, 99))
    return figures, (loss.item(), *(value.item() for value in measures.values()))


def train_on_rank(cases: list[tuple[str, RunConfig]]) -> list[tuple[list[Figures], Figures]]:
    """What a rank sees of some runs, one after the other."""
    join(read_world("cpu"))
    found = [_train(*case) for case in cases]
    leave()
    return found


def _train(name: str, config: RunConfig) -> tuple[list[Figures], Figures]:
    engine, grid = open_engine(config)
    loss = build_loss(config.objective, config.model)

    def own(step: int) -> tuple[list[Batch], float]:
        batch = batch_of(name, step).map(lambda tensor: tensor[grid.coordinate("data") :: grid.data])
        [count] = all_reduce_sum([loss.counts(batch)[0] * grid.is_sample_leader])
        micro, _ = accumulation(config.train, grid.data)
        return engine.with_shared(batch.split(micro), count, all_reduce_sum), count

    figures = []
    for step in range(STEPS):
        batches, count = own(step)
        sums, norm = engine.train_step(batches, step, [count])
        [total] = all_reduce_sum(sums)
        figures.append((total / count, norm))
    batches, count = own(99)
    totals = all_reduce_sum([sum(each) for each in zip(*map(engine.measure, batches), strict=True)])
    return figures, tuple(total / count for total in totals)


FEW = [("dpo", LAYOUTS[2]), ("kto", LAYOUTS[3]), ("reward", LAYOUTS[2]), ("kto", LAYOUTS[5])]
"""One of each kind of layout."""
ALL = [(name, layout) for name in OBJECTIVES for layout in LAYOUTS]


@pytest.mark.parametrize("cases", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_two_ranks_train_as_plain_torch(cases: list[tuple[str, dict[str, Any]]]) -> None:
    configs = [(name, config_of(name, layout)) for name, layout in cases]
    expected = {name: plain(name, config_of(name, LAYOUTS[0])) for name in dict(cases)}
    for rank in run_ranks(2, train_on_rank, configs):
        for (name, layout), (figures, evaluated) in zip(cases, rank, strict=True):
            steps, last = expected[name]
            assert figures == [pytest.approx(row, rel=1e-5) for row in steps], (name, layout)
            # Margins are differences of numbers that are larger by far.
            assert evaluated == pytest.approx(last, rel=1e-5, abs=1e-6), (name, layout)
