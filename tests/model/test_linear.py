"""Products with a weight beside PyTorch's in fp64, by both of its libraries."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.model import linear
from llmscale.model.grouped import grouped_product

ONEDNN = pytest.mark.parametrize("onednn", [False, True])
RELATIVE = 2e-6
"""Of the largest value, which is a sum of tens of products in fp32."""


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = request.node.callspec.params.get("onednn") if hasattr(request.node, "callspec") else None
    if wanted and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    if wanted is not None:
        monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", wanted)


def near(found: Tensor | None, expected: Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return found.shape == expected.shape and (found - expected).abs().max() <= RELATIVE * expected.abs().max()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def used(call: Any) -> set[str]:
    """Names of PyTorch's operators that a call runs."""
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()}


@ONEDNN
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (2, 64, 24)])
@pytest.mark.parametrize("outputs", [1, 24, 56])
@pytest.mark.parametrize("trained", ["xwb", "xw", "wb", "x", "b", "w", ""])
def test_a_product_and_its_gradients(onednn: bool, shape: tuple[int, ...], outputs: int, trained: str) -> None:
    values = {"x": numbers(*shape), "w": numbers(outputs, shape[-1]), "b": numbers(outputs)}
    ours = {name: value.clone().requires_grad_(name in trained) for name, value in values.items()}
    theirs = {name: value.double().requires_grad_(name in trained) for name, value in values.items()}
    made = linear.linear(ours["x"], ours["w"], ours["b"])
    expected = F.linear(theirs["x"], theirs["w"], theirs["b"])
    assert near(made, expected)
    assert made.requires_grad == expected.requires_grad
    with torch.no_grad() if not trained else contextlib.nullcontext():
        made[..., 1:].mul_(2.0)
        expected[..., 1:].mul_(2.0)
    if trained:
        gradient = numbers(*expected.shape, seed=1)
        made.backward(gradient)
        expected.backward(gradient.double())
    for name, value in ours.items():
        assert near(value.grad, theirs[name].grad), name
        assert value.grad is None or value.grad.is_contiguous()


@ONEDNN
def test_without_bias_rows_or_a_plain_layout(onednn: bool) -> None:
    x, weight = numbers(8, 6), numbers(6, 4)
    assert near(linear.linear(x, weight.T), x.double() @ weight.double())
    assert near(linear.linear(x.T, numbers(3, 8)), x.T.double() @ numbers(3, 8).T.double())
    empty = torch.zeros(0, 6, requires_grad=True)
    made = linear.linear(empty, weight.T.clone().requires_grad_())
    made.sum().backward()
    assert (made.shape, empty.grad is not None and empty.grad.shape) == ((0, 4), (0, 6))


@ONEDNN
@pytest.mark.parametrize(("left", "right"), [(4, 9), (9, 4), (5, 5)])
def test_outer_products_and_their_sums(onednn: bool, left: int, right: int) -> None:
    factors = numbers(32, left), numbers(32, right)
    expected = factors[0].double().T @ factors[1].double()
    assert near(linear.outer(*factors), expected)
    total = linear.add_outer(None, *factors)
    assert near(total, expected)
    assert near(linear.add_outer(total, *factors), 2 * expected)


def test_factors_narrower_than_the_sum_are_added_in_its_type() -> None:
    factors = numbers(32, 4).bfloat16(), numbers(32, 9).bfloat16()
    total = linear.add_outer(linear.add_outer(None, *factors), *factors)
    expected = 2 * factors[0].double().T @ factors[1].double()
    assert total.dtype == torch.float32
    assert (total - expected).abs().max() <= 2**-7 * expected.abs().max()


@ONEDNN
@pytest.mark.parametrize("sizes", [(8, 8, 16), (0, 20, 12), (32, 0, 0), (1, 30, 1)])
def test_products_of_groups(onednn: bool, sizes: tuple[int, ...]) -> None:
    rows, weights = numbers(32, 8).requires_grad_(), numbers(3, 12, 8).requires_grad_()
    wide, wide_weights = rows.detach().double().requires_grad_(), weights.detach().double().requires_grad_()
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    made = grouped_product(rows, weights, ends)
    parts = zip(wide.split(list(sizes)), wide_weights, strict=True)
    expected = torch.cat([part @ weight.T for part, weight in parts])
    assert near(made, expected)
    gradient = numbers(32, 12, seed=1)
    made.backward(gradient)
    expected.backward(gradient.double())
    assert near(rows.grad, wide.grad)
    assert near(weights.grad, wide_weights.grad)


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_come_in_the_same_order_on_every_rank(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on one whose processor is of another make, or which has no rows: DeepSpeed sums them in that order."""

    def order(rows: int, onednn: bool) -> list[str]:
        monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", onednn)
        x, weight = numbers(rows, 8).requires_grad_(), numbers(*([2] if grouped else []), 12, 8).requires_grad_()
        bias = numbers(12).requires_grad_()
        came: list[str] = []
        for name, leaf in {"x": x, "weight": weight, "bias": bias}.items():
            leaf.register_post_accumulate_grad_hook(lambda _, name=name: came.append(name))
        ends = torch.tensor([rows // 2, rows], dtype=torch.int32)
        made = grouped_product(x, weight, ends) + bias if grouped else linear.linear(x, weight, bias)
        made.sum().backward()
        return came

    orders = [order(rows, onednn) for rows in (0, 5) for onednn in (False, True)]
    assert sorted(orders[0]) == ["bias", "weight", "x"]
    assert all(found == orders[0] for found in orders)


@ONEDNN
def test_each_product_of_a_step_is_by_the_chosen_library(onednn: bool) -> None:
    layer, x = linear.Linear(8, 8), numbers(4, 8).requires_grad_()
    operators = used(lambda: layer(x).sum().backward())
    assert ("mkldnn::_linear_pointwise" in operators) == onednn
    assert bool({"aten::mm", "aten::addmm"} & operators) != onednn


@pytest.mark.parametrize("change", [{"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"device": "meta"}])
def test_other_types_and_devices_are_left_to_pytorch(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", True)
    layer, plain = linear.Linear(8, 4).to(**change), nn.Linear(8, 4).to(**change)
    plain.load_state_dict(layer.state_dict())
    x = numbers(3, 8).to(**change)
    assert "mkldnn::_linear_pointwise" not in used(lambda: layer(x))
    assert layer(x).shape == (3, 4)
    assert change == {"device": "meta"} or torch.equal(layer(x), plain(x))


@pytest.mark.parametrize(
    ("text", "capability", "faster"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", "AVX512", False),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_what_decides_is_the_processor(
    text: str | None, capability: str, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(linear, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, name), "is_available", lambda: True)
    assert linear._onednn_is_faster() == faster
