"""Losses of preferences beside trl's own computation, given the same log-probabilities of tokens."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.objectives.preference import PreferenceObjective
from llmscale.config import ModelConfig
from llmscale.objectives.preference_loss import PreferenceLoss

trl = pytest.importorskip("trl")
ROWS, LENGTH, BETA = 6, 9, 0.2


class Given:
    """Log-probabilities of the tokens of both answers, and what trl and we are told of them."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(4)
        sizes = torch.randint(1, LENGTH, (2 * ROWS, 1), generator=draw)
        self.mask = (torch.arange(LENGTH) < sizes).long()
        self.scores = -4 * torch.rand(2 * ROWS, LENGTH, generator=draw) * self.mask
        self.reference = -2 * sizes[:, 0] * torch.rand(2 * ROWS, generator=draw)
        self.labels = torch.tensor([True, False, True, True, False, False])

    def halves(self, values: Tensor) -> Tensor:
        return torch.stack(values.double().chunk(2), dim=1)

    def ours(self, objective: PreferenceObjective) -> float:
        """The mean of our loss."""
        labels = {"reference": self.halves(self.reference), "desirable": self.labels.long()}
        if objective.loss == "kto":
            labels["kl"] = (self.halves(self.scores.sum(1)) - labels["reference"])[:, 1].mean().expand(ROWS)
        nothing = torch.zeros(ROWS, 1, dtype=torch.int64)
        batch = Batch(nothing, nothing, torch.ones(ROWS, 1), torch.arange(ROWS), labels=labels)
        loss = PreferenceLoss(ModelConfig(), objective)
        return loss.each(self.halves(self.scores.sum(1)), self.halves(self.mask.sum(1)), batch).mean().item()

    def outputs(self, rows: int) -> SimpleNamespace:
        nothing = torch.zeros(rows, LENGTH)
        return SimpleNamespace(
            log_probs=self.scores[:rows], entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )


def trainer(outputs: SimpleNamespace, **settings: Any) -> SimpleNamespace:
    """What trl's loss asks of its trainer."""
    every = SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value)
    common = {
        "model": SimpleNamespace(training=True), "accelerator": every, "aux_loss_enabled": False, "beta": BETA,
        "precompute_ref_logps": True, "_metrics": defaultdict(lambda: defaultdict(list)), "_total_train_tokens": 0,
        "_tp_size": 1,
    }  # fmt: skip
    return SimpleNamespace(**{**common, **settings})


def inputs_of(mask: Tensor) -> dict[str, Tensor]:
    behind = torch.cat([torch.zeros(len(mask), 1, dtype=torch.int64), mask], dim=1)
    return {"input_ids": behind, "attention_mask": torch.ones_like(behind), "completion_mask": behind}


@pytest.mark.parametrize(("theirs", "ours"), [("sigmoid", "dpo"), ("ipo", "ipo")])
def test_pairs(theirs: str, ours: str) -> None:
    given = Given()
    outputs = given.outputs(2 * ROWS)
    settings = {"loss_types": [theirs], "loss_weights": [1.0], "f_divergence_type": "reverse_kl", "ld_alpha": None}
    first, second = given.reference.chunk(2)
    expected = trl.DPOTrainer._compute_loss(
        trainer(outputs, use_weighting=False, label_smoothing=0.0, **settings),
        lambda **_: outputs,
        {**inputs_of(given.mask), "ref_chosen_logps": first, "ref_rejected_logps": second},
        False,
    )
    assert given.ours(PreferenceObjective(loss=ours, beta=BETA)) == pytest.approx(expected.item(), rel=1e-5)


def test_answers_that_stand_alone() -> None:
    given = Given()
    outputs = given.outputs(ROWS)
    kept, mismatched = given.reference.chunk(2)
    settings = {"loss_type": "kto", "calculate_KL": True, "desirable_weight": 1.3, "undesirable_weight": 0.6}
    both = given.scores.sum(1).chunk(2)[1]
    expected = trl.KTOTrainer._compute_loss(
        trainer(outputs, _compute_kl_logps=lambda *_: both, **settings),
        lambda **_: outputs,
        {
            **inputs_of(given.mask[:ROWS]),
            "label": given.labels,
            "ref_logps": kept,
            "ref_KL_logps": mismatched,
        },
        False,
    )
    ours = PreferenceObjective(loss="kto", beta=BETA, desirable_weight=1.3, undesirable_weight=0.6)
    assert given.ours(ours) == pytest.approx(expected.item(), rel=1e-5)


def test_odds_ratios() -> None:
    module = pytest.importorskip("trl.experimental.orpo")
    given = Given()
    means = given.halves(given.scores.sum(1)) / given.halves(given.mask.sum(1))
    losses, *_ = module.ORPOTrainer.odds_ratio_loss(trainer(given.outputs(ROWS)), means[:, 0], means[:, 1])
    expected = (-means[:, 0] - losses).mean()
    assert given.ours(PreferenceObjective(loss="orpo", odds_weight=BETA)) == pytest.approx(expected.item(), rel=1e-5)
