"""The norm of gradients as they are: a few large values, and very many small ones."""

import pytest
import torch

from llmscale.engine.deepspeed.shims import sum_of_squares


@pytest.mark.parametrize("count", [1, 255, 256, 257, 3_000_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_values_count_beside_large_ones(count: int, dtype: torch.dtype) -> None:
    """As in the embedding of a vocabulary, of which a batch has few tokens; against fp64."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, generator=generator) * 1e-4
    values[::997] = torch.randn(len(values[::997]), generator=generator) * 0.1
    values = values.to(dtype)
    exact = values.double().square().sum()
    assert sum_of_squares(values).sqrt().item() == pytest.approx(exact.sqrt().item(), rel=2e-7)


def test_what_is_not_finite_shows() -> None:
    for wrong in (torch.inf, torch.nan, 1e30):
        values = torch.ones(1000)
        values[600] = wrong
        assert not sum_of_squares(values).isfinite()
    assert sum_of_squares(torch.ones(3, 500).t()).item() == pytest.approx(1500)
