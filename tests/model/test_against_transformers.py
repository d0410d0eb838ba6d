"""The model beside transformers' GPT-2 and Llama with the same weights: logits, loss, gradients, training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmscale.model import Transformer
from tests.model.references import CONFIGS, VOCAB, pair, renamed, tokens

NAMES = list(CONFIGS)


def our_loss(model: Transformer, ids: torch.Tensor) -> torch.Tensor:
    """Mean loss of predicting each token but the first."""
    targets = ids[:, 1:]
    return model.head(model(ids[:, :-1]).hidden, targets, torch.ones(targets.shape)) / targets.numel()


def their_loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_equal_and_padded_columns_impossible(name: str) -> None:
    ours, theirs = pair(name)
    ids = tokens()
    with torch.no_grad():
        logits = ours.head(ours(ids).hidden)
        expected = theirs(input_ids=ids, use_cache=False).logits
    assert logits.shape[-1] == 112
    torch.testing.assert_close(logits[..., :VOCAB], expected, rtol=1e-5, atol=1e-5)
    assert torch.all(logits[..., VOCAB:] == -torch.inf)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_all_gradients_are_equal(name: str) -> None:
    ours, theirs = pair(name)
    ids = tokens()
    loss, expected = our_loss(ours, ids), their_loss(theirs, ids)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    loss.backward()
    expected.backward()
    references = renamed(name, theirs, lambda parameter: parameter.grad)
    # The gradient of a key bias is 0 but for the rounding of terms as large as other gradients are.
    rounding = 1e-6 * max(reference.abs().max().item() for reference in references.values())
    for key, parameter in ours.named_parameters():
        gradient, reference = parameter.grad, references[key]
        tolerance = 2e-5 * reference.abs().max().item() + rounding
        torch.testing.assert_close(gradient[: len(reference)], reference, rtol=0, atol=tolerance)
        assert torch.all(gradient[len(reference) :] == 0), key


@pytest.mark.parametrize("name", NAMES)
def test_training_takes_the_same_course(name: str) -> None:
    ours, theirs = pair(name)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (ours, theirs)]
    losses: list[list[float]] = [[], []]
    for step in range(20):
        ids = tokens(seed=step % 4)
        for index, loss in enumerate((our_loss(ours, ids), their_loss(theirs, ids))):
            loss.backward()
            losses[index].append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=1e-5)
    assert losses[1][-1] < losses[1][0] - 0.3
