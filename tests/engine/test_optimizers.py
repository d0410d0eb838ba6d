"""Adafactor, Lion and Muon over whole parameters, against the same by somebody else."""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from transformers.optimization import Adafactor as TransformersAdafactor

from llmscale.engine.optimizers import Part, hidden_matrix
from llmscale.engine.optimizers.adafactor import Adafactor
from llmscale.engine.optimizers.muon import Muon, orthogonalize
from llmscale.slices.tensor_slice import TensorSlice
from tests.engine.cases import case_config, own_optimizers, plain_torch
from tests.engine.references import VARIANTS, assert_same_weights, reference_optimizers, single_precision_muon, weights

STEPS, TOLERANCE = 20, 1e-5
SHAPES = [(5, 12), (12, 5), (7, 7), (1, 6), (6, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_equals_the_reference(variant: str) -> None:
    config = case_config(**VARIANTS[variant])
    with single_precision_muon():
        expected, reference = plain_torch(config, STEPS, reference_optimizers)
    found, model = plain_torch(config, STEPS, own_optimizers)
    assert all(norm > config.optimizer.clip for _, norm in expected), "clipping must be active"
    assert expected[-1][0] < 0.85 * expected[0][0], "this must have learned something"
    assert found == [pytest.approx(figures, rel=TOLERANCE) for figures in expected]
    assert_same_weights(weights(model), weights(reference))


def steps(optimizer: torch.optim.Optimizer, parameters: list[Tensor], seed: int = 0) -> list[Tensor]:
    """The parameters after three steps with random gradients of very unequal rows and columns."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in parameters:
            scale = torch.logspace(-3, 1, parameter.shape[-1])
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def parameters(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize(
    ("lr_adjustment", "nesterov"), itertools.product(["original", "match_rms_adamw"], [True, False])
)
def test_muon_in_bfloat16_is_torchs(lr_adjustment: str, nesterov: bool) -> None:
    own, theirs = parameters(SHAPES), parameters(SHAPES)
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9, "nesterov": nesterov}
    groups = [{"params": own, "orthogonal": True}]
    muon = Muon(groups, lr_adjustment=lr_adjustment, arithmetic=torch.bfloat16, **options)
    expected = steps(torch.optim.Muon(theirs, adjust_lr_fn=lr_adjustment, **options), theirs)
    for found, wanted in zip(steps(muon, own), expected, strict=True):
        # Three updates of about 0.1, of which bfloat16 keeps 8 bits.
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.01)


def test_the_iteration_brings_singular_values_near_to_one() -> None:
    stack = torch.randn(3, 17, 40, generator=torch.Generator().manual_seed(0))
    for matrices in (stack, stack.mT):
        found = orthogonalize(matrices, 5)
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        inner = left.mT @ found @ right.mT
        singular = torch.diagonal(inner, dim1=-2, dim2=-1)
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        assert (inner - torch.diag_embed(singular)).abs().max() < 1e-3


def test_muon_treats_stacks_as_matrices_of_their_own() -> None:
    [stack], single = parameters([(3, 5, 8)]), parameters([(3, 5, 8)])[0].detach().unbind()
    matrices = [torch.nn.Parameter(matrix.clone()) for matrix in single]
    options = {"lr": 0.1, "arithmetic": torch.float32}
    together = Muon([{"params": [stack], "orthogonal": True}], **options)
    apart = Muon([{"params": matrices, "orthogonal": True}], **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        stack.grad = torch.randn(stack.shape, generator=generator)
        for matrix, gradient in zip(matrices, stack.grad.clone(), strict=True):
            matrix.grad = gradient
        together.step()
        apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([matrix.detach() for matrix in matrices]))


@pytest.mark.parametrize("scale_parameter", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adafactor_is_transformers_also_for_stacks(scale_parameter: bool, momentum: float) -> None:
    shapes = [*SHAPES, (9,), (3, 4, 5)]
    own, theirs = parameters(shapes), parameters(shapes)
    with torch.no_grad():
        for parameter in (own[0], theirs[0]):
            parameter.mul_(1e-5)  # below the least scale
    found = steps(Adafactor(own, lr=0.1, scale_parameter=scale_parameter, momentum=momentum), own)
    reference = TransformersAdafactor(
        theirs, lr=0.1, scale_parameter=scale_parameter, relative_step=False, beta1=momentum or None
    )
    for a, b in zip(found, steps(reference, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_adafactors_decay_is_by_the_learning_rate_alone() -> None:
    """As for the other optimizers; transformers would scale it by the size of the tensor."""
    [decayed], [plain] = parameters([(4, 3)]), parameters([(4, 3)])
    for parameter, decay in ((decayed, 0.5), (plain, 0.0)):
        parameter.grad = torch.ones(4, 3)
        Adafactor([parameter], lr=0.1, weight_decay=decay).step()
    [before] = parameters([(4, 3)])
    torch.testing.assert_close(plain - decayed, 0.1 * 0.5 * before)


def test_rectangles_are_where_they_say() -> None:
    choose = random.Random(0)
    for _ in range(300):
        shape = tuple(choose.randint(1, 5) for _ in range(choose.choice([2, 3, 4])))
        numbers = torch.arange(math.prod(shape))
        start, end = sorted(choose.randint(0, len(numbers)) for _ in range(2))
        part = Part("x", TensorSlice.whole(shape).flat_range(start, end), 0)
        found = torch.full(part.stack, -1)
        rectangles = list(part.rectangles(numbers[start:end]))
        for matrices, rows, columns, values in rectangles:
            assert (found[matrices, rows, columns] == -1).all(), "an element is there twice"
            found[matrices, rows, columns] = values
        inside = (numbers >= start) & (numbers < end)
        assert torch.equal(found.view(-1), torch.where(inside, numbers, -1))
        assert len(rectangles) <= 5


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("blocks.0.attention.query.weight", (8, 8), True),
        ("blocks.3.experts.up.weight", (4, 8, 16), True),
        ("encoder.blocks.0.feed_forward.up.weight", (8, 16), True),
        ("blocks.1.cross_attention.key.weight", (8, 8), True),
        ("encoder.relative_bias.table.weight", (32, 4), False),
        ("encoder.queries.weight", (64, 8), False),
        ("embedding.weight", (64, 8), False),
        ("positions.weight", (16, 8), False),
        ("head.weight", (64, 8), False),
        ("head.dense.weight", (8, 8), False),
        ("encoder.embedding.weight", (64, 8), False),
        ("encoder.blocks.0.attention.relative_positions.weight", (32, 4), False),
        ("blocks.0.experts.up.bias", (4, 16), False),
        ("blocks.0.norm.weight", (8,), False),
        ("pooler.weight", (8, 8), False),
    ],
)
def test_what_muon_orthogonalises(name: str, shape: tuple[int, ...], hidden: bool) -> None:
    assert hidden_matrix(name, shape) == hidden


def test_an_optimizer_has_its_papers_defaults_unless_told_otherwise() -> None:
    assert case_config(optimizer__name="lion").optimizer.betas == (0.9, 0.99)
    assert case_config(optimizer__name="lion", optimizer__betas="[0.95, 0.98]").optimizer.betas == (0.95, 0.98)
    assert case_config(optimizer__name="muon").optimizer.momentum == 0.95
    assert case_config(optimizer__name="muon", optimizer__momentum=0).optimizer.momentum == 0
    assert case_config().optimizer.betas == (0.9, 0.95)
    assert case_config(optimizer__name="adafactor").optimizer.momentum == 0
