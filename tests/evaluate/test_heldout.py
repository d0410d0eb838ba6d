"""How an evaluation is cut into batches."""

from types import SimpleNamespace

import pytest
import torch

from llmscale.evaluate.heldout import evaluate


class Documents:
    """Five samples, the n-th of which has n targets; -1 is padding."""

    bytes = tokens = documents = 15

    def __len__(self) -> int:
        return 5

    def batch(self, indices: list[int]) -> SimpleNamespace:
        return SimpleNamespace(weights=torch.tensor([float(index + 1) for index in indices]))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 2**31 - 1])
def test_a_batch_is_no_larger_than_what_there_is(size: int, ranks: int) -> None:
    """The largest size that a config takes would else be two thousand million padding samples."""
    counts: list[int] = []
    total = 0.0
    for rank in range(ranks):
        batches: list[int] = []

        def measure(batch: SimpleNamespace, batches: list[int] = batches) -> list[float]:
            batches.append(len(batch.weights))
            return [float(batch.weights.sum())]

        found = evaluate(measure, Documents(), size, rank=rank, ranks=ranks)  # type: ignore[arg-type]
        assert found is not None
        total += found["tokens"]
        assert max(batches) <= min(size, -(-5 // ranks))
        counts.append(len(batches))
    assert total == 15
    assert len(set(counts)) == 1
