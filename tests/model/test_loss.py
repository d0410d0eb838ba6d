"""The fused loss beside F.cross_entropy on whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.objectives.causal import CausalObjective
from llmscale.config import ModelConfig
from llmscale.model import cross_entropy
from llmscale.model.cross_entropy import linear_cross_entropy
from llmscale.model.projections import Vocabulary
from llmscale.objectives.loss import build_loss
from llmscale.parallel.init import build
from tests.model.references import GPT2, VOCAB

ROWS, VOCABULARY, WIDTH, TOKENS = 48, 43, 16, 29


@pytest.fixture(params=[1, 7, 29, 1024])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", request.param)
    return request.param


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    weights = torch.rand(TOKENS, generator=generator) * (torch.arange(TOKENS) % 3 > 0)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, weights


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)[:, :VOCABULARY]
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


def test_value_and_gradients(chunk: int) -> None:
    hidden, weight, targets, weights = case()
    loss = linear_cross_entropy(hidden, weight, targets, weights, VOCABULARY)
    expected = plain(hidden, weight, targets, weights)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss * 3, (hidden, weight))
    torch.testing.assert_close(found, torch.autograd.grad(expected * 3, (hidden, weight)))
    assert torch.all(found[0][weights == 0] == 0)
    assert torch.all(found[1][VOCABULARY:] == 0)


def test_without_gradients_the_value_is_the_same(chunk: int) -> None:
    hidden, weight, targets, weights = case()
    trained = linear_cross_entropy(hidden, weight, targets, weights, VOCABULARY)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, targets, weights, VOCABULARY), trained)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_side_may_be_frozen(frozen: int) -> None:
    tensors = case()
    tensors[frozen].requires_grad_(False)
    other = tensors[1 - frozen]
    found = torch.autograd.grad(linear_cross_entropy(*tensors, VOCABULARY), other)
    torch.testing.assert_close(found, torch.autograd.grad(plain(*tensors), other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_arguments_stay_as_they_are(dtype: torch.dtype) -> None:
    arguments = [*case(dtype)[:3], case(dtype)[3].to(torch.promote_types(dtype, torch.float32))]
    before = [argument.detach().clone() for argument in arguments]
    linear_cross_entropy(*arguments, VOCABULARY).backward()
    assert all(map(torch.equal, before, arguments))


def test_backward_may_run_twice() -> None:
    hidden, weight, targets, weights = case()
    loss = linear_cross_entropy(hidden, weight, targets, weights, VOCABULARY) * 2
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, (hidden, weight))))


@pytest.mark.parametrize("chunk_tokens", [5, 1024])
def test_bf16_weights_with_an_fp32_softmax(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", chunk_tokens)
    hidden, weight, targets, weights = case(torch.bfloat16)
    loss = linear_cross_entropy(hidden, weight, targets, weights, VOCABULARY)
    assert loss.dtype == torch.float32
    # The logits themselves are bf16: the rest must lose nothing.
    logits = F.linear(hidden, weight).float()[:, :VOCABULARY]
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    found = torch.autograd.grad(loss, (hidden, weight))
    exact = torch.autograd.grad(plain(hidden.double(), weight.double(), targets, weights), (hidden, weight))
    for gradient, reference in zip(found, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), reference.double(), rtol=0, atol=0.02 * reference.abs().max())


@pytest.mark.parametrize("targets_of_the_step", [3, 100, 1237, 4001, 524_288 - 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_over_the_number_of_targets_is_not_rounded(targets_of_the_step: int, dtype: torch.dtype) -> None:
    """Gradients as long as they should be: rounding errors of many elements cancel, one of the scale does not."""
    generator = torch.Generator().manual_seed(2)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((300, 64), (ROWS, 64), (ROWS,)))
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)]
    targets, weights = torch.randint(VOCABULARY, (300,), generator=generator), torch.ones(300)
    scaling = 1.0 if dtype == torch.bfloat16 else 4096.0  # as fp16 training scales its loss

    def gradient(scale: float) -> Tensor:
        loss = linear_cross_entropy(leaves[0], leaves[1], targets, weights, VOCABULARY, leaves[2]) * scale
        return torch.cat([part.double().flatten() for part in torch.autograd.grad(loss, leaves)])

    found, wanted = gradient(scaling / targets_of_the_step), gradient(1) * scaling / targets_of_the_step
    assert float(found @ wanted / (wanted @ wanted)) == pytest.approx(1, abs=1e-4)


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, targets, weights = case(torch.float32)
    large = (hidden.detach() * 300).requires_grad_()
    loss = linear_cross_entropy(large, weight, targets, weights, VOCABULARY)
    torch.testing.assert_close(loss, plain(large, weight, targets, weights), rtol=1e-5, atol=0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (large, weight)))


def test_no_chunk_holds_more_than_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = cross_entropy._softmax
    monkeypatch.setattr(
        cross_entropy, "_softmax", lambda logits, *rest: seen.append(len(logits)) or original(logits, *rest)
    )
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", 8)
    linear_cross_entropy(*case(), VOCABULARY).backward()
    assert seen == [8, 8, 8, 5]


def test_the_head_gives_the_loss_of_its_logits() -> None:
    head = Vocabulary(ModelConfig(hidden_size=WIDTH, heads=1, vocab_multiple=ROWS), VOCABULARY).double()
    hidden, weight, targets, _ = case()
    head.weight = torch.nn.Parameter(weight.detach())
    logits = head(hidden.view(1, TOKENS, WIDTH))
    expected = F.cross_entropy(logits[0], targets, reduction="sum")
    torch.testing.assert_close(head(hidden.view(1, TOKENS, WIDTH), targets[None]), expected)


def test_tied_gradient_is_the_sum_of_both_uses() -> None:
    model = build(GPT2.model_copy(update={"init_std": 0.3}), VOCAB, seed=1).double()
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(VOCAB, (2, 3, 9), generator=generator)
    weights = torch.rand(3, 9, generator=generator)
    logits = F.linear(model(inputs).hidden, model.embedding.weight)[..., :VOCAB]
    expected = (F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none") * weights.flatten()).sum()
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    batch = Batch(inputs, targets, weights, torch.arange(3))
    (loss,) = build_loss(CausalObjective(), model.config)(model, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), gradients)
