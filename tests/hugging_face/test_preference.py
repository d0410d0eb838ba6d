"""Losses and gradients of preferences beside the papers' formulas in plain torch, over transformers' models of the same
weights in fp64, which read each answer by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_pipeline.batch import Batch, make_batch, with_label
from data_pipeline.document import Document
from data_pipeline.objectives.packing import Sample, stored_values
from data_pipeline.objectives.preference import PreferenceObjective
from data_pipeline.objectives.reward import RewardObjective
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.hugging_face.importing import import_directory
from llmscale.objectives.loss import build_loss
from llmscale.objectives.preference_loss import answer_sums, scored
from tests.hugging_face.references import BYTES, CONTEXT, randomized, reference, renamed, save

PROMPTS = ["ab", "Wie geht es", "\u4f60\u597d", "x"]
CHOSEN = ["cd e", "gut", "\u597d", "\U0001f600 ja"]
REJECTED = ["f", "schlecht", "\u574f!", "no no no"]
LABELS = [True, False, False, True]
BETA = 0.3
CASES: dict[str, dict[str, Any]] = {
    "dpo": {"loss": "dpo", "beta": BETA},
    "smoothed": {"loss": "dpo", "beta": BETA, "label_smoothing": 0.2},
    "rpo": {"loss": "dpo", "beta": BETA, "nll_weight": 0.7},
    "ipo": {"loss": "ipo", "beta": BETA},
    "orpo": {"loss": "orpo", "odds_weight": 0.5},
    "kto": {"loss": "kto", "beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.5},
}


def texts(settings: PreferenceObjective | RewardObjective) -> list[tuple[str, str]]:
    """Both answers of each record, as the halves of a row have them."""
    if getattr(settings, "loss", "") == "kto":
        return [(CHOSEN[i], CHOSEN[i - 1]) for i in range(len(CHOSEN))]
    return list(zip(CHOSEN, REJECTED, strict=True))


def batch_of(trained: TrainedModel, settings: PreferenceObjective | RewardObjective) -> Batch:
    """The batch that the data pipeline makes of the records."""
    objective = settings.build(trained.tokenizer, CONTEXT, 0)
    columns = zip(PROMPTS, CHOSEN, REJECTED, LABELS, strict=True)
    documents = [
        Document(0, 0, 0, prompt, values={"chosen": chosen, "rejected": rejected, "answer": chosen, "label": label})
        for prompt, chosen, rejected, label in columns
    ]
    samples = [
        Sample(document.tokens, (), len(document.tokens), values=stored_values(document.values, settings.stored))
        for document in objective.checked(documents, str)
    ]
    return make_batch(objective.arrays(samples, range(len(samples))), np.arange(len(samples)))


def plain_log_probability(model: nn.Module, trained: TrainedModel, prompt: str, answer: str) -> tuple[Tensor, int]:
    """The sum over the answer's tokens and its end, and how many there are: one text, nothing beside it."""
    eos = trained.tokenizer.special["eos"]
    head = [eos, *trained.tokenizer.encode(prompt)]
    behind = [*trained.tokenizer.encode(answer), eos]
    ids = torch.tensor([[*head, *behind]])
    logits = model(input_ids=ids).logits[0].log_softmax(-1)
    chosen = logits[torch.arange(len(head) - 1, len(head) + len(behind) - 1), torch.tensor(behind)]
    return chosen.sum(), len(behind)


def formula(
    settings: PreferenceObjective, policy: list[list[tuple[Tensor, int]]], base: list[list[tuple[Tensor, int]]]
) -> Tensor:
    """The papers' losses, each row by itself; mean over the rows."""
    losses = []
    mismatched = sum((p[1][0] - r[1][0]).detach() for p, r in zip(policy, base, strict=True)) / len(policy)
    for number, ((first, second), (first_base, second_base)) in enumerate(zip(policy, base, strict=True)):
        (w, w_size), (v, v_size) = first, second
        h = (w - first_base[0]) - (v - second_base[0])
        match settings.loss:
            case "dpo":
                smoothing = settings.label_smoothing
                right, wrong = torch.sigmoid(BETA * h), torch.sigmoid(-BETA * h)
                loss = -(1 - smoothing) * right.log() - smoothing * wrong.log()
                loss = loss - settings.nll_weight * w / w_size
            case "ipo":
                h = (w - first_base[0]) / w_size - (v - second_base[0]) / v_size
                loss = (h - 1 / (2 * BETA)) ** 2
            case "orpo":
                p_w, p_l = (w / w_size).exp(), (v / v_size).exp()
                ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
                loss = -w / w_size - settings.odds_weight * torch.sigmoid(ratio.log()).log()
            case _:
                gain = BETA * (w - first_base[0] - max(mismatched, torch.zeros(())))
                if LABELS[number]:
                    loss = settings.desirable_weight * (1 - torch.sigmoid(gain))
                else:
                    loss = settings.undesirable_weight * (1 - torch.sigmoid(-gain))
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_the_papers(case: str, name: str, tmp_path: Path) -> None:
    settings = PreferenceObjective(**CASES[case])
    theirs = reference(name).double()
    torch.manual_seed(11)
    base = randomized(name, reference(name)).double()
    import_directory(save(theirs.float(), tmp_path / "hf"), tmp_path / "ours", tokenizer=BYTES)
    trained = load_model(tmp_path / "ours", dtype=torch.float64)
    import_directory(save(base.float(), tmp_path / "base"), tmp_path / "reference", tokenizer=BYTES)
    theirs, base = theirs.double(), base.double()
    trained.model.train()
    batch = batch_of(trained, settings)

    policy, fixed = (
        [
            [plain_log_probability(model, trained, prompt, answer) for answer in answers]
            for prompt, answers in zip(PROMPTS, texts(settings), strict=True)
        ]
        for model in (theirs, base)
    )
    fixed = [[(value.detach(), size) for value, size in row] for row in fixed]
    expected = formula(settings, policy, fixed)
    expected.backward()

    # The reference's log-probabilities, as a run computes them.
    kept = load_model(tmp_path / "reference", dtype=torch.float64).model
    asked = scored(batch)
    from llmscale.objectives.scores import token_scores

    with torch.no_grad():
        hidden = kept(batch.inputs, batch.positions, batch.segment_ids).hidden
        sums = answer_sums(asked, token_scores(kept, hidden, asked.scored_places, asked.scored_tokens)[0])
    wanted = torch.tensor([[value.item() for value, _ in row] for row in fixed], dtype=torch.float64)
    torch.testing.assert_close(sums, wanted, rtol=1e-6, atol=0)
    batch = replace(batch, labels={**batch.labels, "reference": sums})

    loss = build_loss(settings, trained.config.model)
    if loss.shared is not None:
        with torch.no_grad():
            measured = loss.heads[0].measure(trained.model.head, loss.output(trained.model, batch).hidden, batch)
        batch = with_label(batch, loss.shared, measured[list(loss.measures).index(loss.shared)].item() / batch.size)
    value = loss(trained.model, batch)[0] / loss.counts(batch)[0]
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    gradients = renamed(theirs, trained.config.model, lambda parameter: parameter.grad)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, parameter in trained.model.named_parameters():
        found, wanted = parameter.grad, gradients[key]
        # Rows that the vocabulary is filled up with have none.
        found, more = found[: len(wanted)], found[len(wanted) :]
        assert not more.any(), key
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * largest)
