"""The losses of preferences: functions of the log-probabilities that a model and a reference give whole answers."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.batch import Batch
from data_pipeline.objectives.preference import DESIRABLE, NAME, PreferenceObjective
from llmscale.config import ModelConfig
from llmscale.model.heads.language import LanguageHead

REFERENCE = "reference"
"""In `Batch.labels`: (B, 2) float64, the log-probabilities of both answers by the reference; NaN where there is
none."""
KL = "kl"
"""The measure of kto whose mean over the global batch is the reference point, and that mean in `Batch.labels`."""
_MEASURES = {
    "dpo": ("accuracy", "margin", "chosen_reward", "rejected_reward"),
    "ipo": ("accuracy", "margin", "chosen_reward", "rejected_reward"),
    "orpo": ("accuracy", "margin"),
    "kto": ("accuracy", KL),
}


class PreferenceLoss(LanguageHead):
    """The language model's head, whose loss is one of pairs of answers, or of answers that stand alone."""

    per_token = False
    higher_is_better = frozenset({"accuracy", "margin", "chosen_reward"})

    def __init__(self, config: ModelConfig, objective: PreferenceObjective) -> None:
        super().__init__(config)
        self.objective = objective
        self.reads = "whole"
        self.measures = _MEASURES[objective.loss]
        self.shared = KL if objective.loss == "kto" else None

    def loss(self, module: nn.Module, hidden: Tensor, batch: Batch, dropout: Tensor | None = None) -> Tensor:
        """The sum over the samples that there are.

        The gradient goes through the vocabulary's weights a few rows of logits at a time, as that of a language model:
        the loss is a function of the answers' log-probabilities alone, whose derivatives weigh the cross-entropies of
        their tokens.
        """
        if NAME not in batch.labels:
            # Text of another objective, of which it is asked what the model has forgotten.
            return super().loss(module, hidden, batch, dropout)
        answers = _Answers(hidden, batch)
        sums = answers.sums(module).requires_grad_(torch.is_grad_enabled())
        value = self.each(sums, answers.lengths, batch)[answers.known].sum()
        wide = torch.promote_types(hidden.dtype, torch.float32)
        if not torch.is_grad_enabled():
            return value.to(wide)
        (slopes,) = torch.autograd.grad(value, sums)
        weights = -slopes.flatten()[answers.owner]
        entropy = module(answers.hidden, answers.targets, weights.to(wide))
        return value.detach().to(wide) + (entropy - entropy.detach())

    def count(self, batch: Batch) -> float:
        return float((batch.labels[NAME] > 0).any(1).sum())

    def measure(self, module: nn.Module, hidden: Tensor, batch: Batch) -> list[Tensor]:
        if NAME not in batch.labels:
            return [hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32)) for _ in self.measures]
        answers = _Answers(hidden, batch)
        found = self.figures(answers.sums(module), answers.lengths, batch)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return [found[name][answers.known].sum().to(wide) for name in self.measures]

    def each(self, sums: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """The loss of each sample, (B,) float64.

        Args:
            sums: (B, 2) float64: log-probabilities of both answers.
            lengths: (B, 2) float64: tokens of the answers.
            batch: with `labels` of the reference.
        """
        objective = self.objective
        if objective.loss == "orpo":
            means = sums / lengths.clamp(min=1)
            return -means[:, 0] - objective.odds_weight * F.logsigmoid(_log_odds_ratio(means))
        ratios = sums - _reference(batch)
        if objective.loss == "kto":
            return self._kto(ratios[:, 0], batch)
        if objective.loss == "ipo":
            means = ratios / lengths.clamp(min=1)
            losses = (means[:, 0] - means[:, 1] - 1 / (2 * objective.beta)).square()
        else:
            logits, smoothing = objective.beta * (ratios[:, 0] - ratios[:, 1]), objective.label_smoothing
            losses = -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)
        if objective.nll_weight:
            losses = losses - objective.nll_weight * sums[:, 0] / lengths[:, 0].clamp(min=1)
        return losses

    def figures(self, sums: Tensor, lengths: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What is measured of each sample, (B,) float64 each, by name; the arguments are those of `each`."""
        objective = self.objective
        if objective.loss == "orpo":
            margin = _log_odds_ratio(sums / lengths.clamp(min=1))
            return {"accuracy": (margin > 0).double(), "margin": margin}
        ratios = sums - _reference(batch)
        if objective.loss == "kto":
            over = ratios[:, 0] > _reference_point(batch)
            right = over == (batch.labels[DESIRABLE] > 0)
            return {"accuracy": right.double(), KL: ratios[:, 1]}
        if objective.loss == "ipo":
            ratios = ratios / lengths.clamp(min=1)
        rewards = objective.beta * ratios
        margin = rewards[:, 0] - rewards[:, 1]
        return {
            "accuracy": (margin > 0).double(),
            "margin": margin,
            "chosen_reward": rewards[:, 0],
            "rejected_reward": rewards[:, 1],
        }

    def _kto(self, ratios: Tensor, batch: Batch) -> Tensor:
        """Equation 8 of Ethayarajh et al. 2024, without the constant that makes it positive there."""
        objective = self.objective
        desirable = batch.labels[DESIRABLE] > 0
        gain = objective.beta * (ratios - _reference_point(batch))
        weights = torch.where(desirable, objective.desirable_weight, objective.undesirable_weight)
        return weights * (1 - torch.where(desirable, gain, -gain).sigmoid())


def scored(batch: Batch) -> Batch:
    """The batch that asks for the log-probability of each token of its answers."""
    asked = batch.labels[NAME] > 0
    order = asked.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(asked.sum(1).max()))]
    places = torch.where(asked.gather(1, order), order, -1)
    return replace(batch, scored_places=places, scored_tokens=batch.targets.gather(1, order))


def answer_sums(batch: Batch, scores: torch.Tensor) -> torch.Tensor:
    """(B, 2) float64: the log-probabilities of both answers of a batch of `scored`, of its (B, K) scores."""
    assert batch.scored_places is not None
    second = batch.scored_places >= batch.inputs.shape[1] // 2
    scores = scores.double().masked_fill(batch.scored_places < 0, 0.0)
    return torch.stack([scores.masked_fill(second, 0.0).sum(1), scores.masked_fill(~second, 0.0).sum(1)], dim=1)


class _Answers:
    """The tokens of the answers of a batch, and what belongs to which."""

    def __init__(self, hidden: Tensor, batch: Batch) -> None:
        asked = batch.labels[NAME] > 0
        rows, places = asked.nonzero(as_tuple=True)
        self.hidden = hidden[rows, places]
        """(N, hidden_size) that the tokens are predicted from."""
        self.targets = batch.targets[rows, places]
        """(N,)."""
        self.owner = 2 * rows + (places >= asked.shape[1] // 2).long()
        """(N,): 2 * sample + 0 or 1, for the answer in the first or the second half."""
        self.known = asked.any(1)
        """(B,): samples that there are."""
        self._size = len(asked)
        self.lengths = self._added(torch.ones(len(rows), dtype=torch.float64, device=hidden.device))
        """(B, 2) float64: tokens of the answers."""

    @torch.no_grad()
    def sums(self, module: nn.Module) -> Tensor:
        """(B, 2) float64: log-probabilities of the answers."""
        return self._added(module(self.hidden, self.targets[:, None], scored=True)[0, :, 0].double())

    def _added(self, values: Tensor) -> Tensor:
        sums = values.new_zeros(2 * self._size)
        return sums.index_add_(0, self.owner, values).reshape(self._size, 2)


def _reference(batch: Batch) -> Tensor:
    return batch.labels[REFERENCE].double()


def _reference_point(batch: Batch) -> Tensor:
    """(B,) or a scalar: the mean log-ratio of mismatched answers, 0 at least; 0 where it is not known yet."""
    found = batch.labels.get(KL)
    if found is None:
        return torch.zeros((), dtype=torch.float64, device=batch.inputs.device)
    return found.double().clamp(min=0)


def _log_odds_ratio(means: Tensor) -> Tensor:
    """log(odds(better) / odds(worse)) of (B, 2) mean log-probabilities per token; odds(y) = p / (1 - p)."""
    # A probability of 1 has no odds.
    means = means.clamp(max=-1e-12)
    odds = means - torch.log(-torch.expm1(means))
    return odds[:, 0] - odds[:, 1]
