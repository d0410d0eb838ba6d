"""Learning rates against values worked out by hand."""

import pytest
import torch
from transformers import get_inverse_sqrt_schedule

from llmscale.config.training import ScheduleConfig
from llmscale.engine.schedule import learning_rate

PEAK = 8.0


def rates(steps: int, **schedule: object) -> list[float]:
    config = ScheduleConfig.model_validate(schedule)
    return [learning_rate(config, PEAK, steps, step) for step in range(steps)]


def test_constant() -> None:
    assert rates(3, name="constant") == [8, 8, 8]


def test_warm_up_reaches_the_peak_right_after_its_last_step() -> None:
    assert rates(6, name="constant", warmup_steps=3) == [2, 4, 6, 8, 8, 8]


def test_cosine_from_the_peak_to_the_final_fraction() -> None:
    """Quarters of the half cosine: (1 + cos(pi x progress)) / 2 is 1, 0.853553, 0.5, 0.146447, 0."""
    assert rates(5, name="cosine", final_fraction=0) == pytest.approx([8, 6.828427, 4, 1.171573, 0], abs=1e-6)
    assert rates(5, name="cosine", final_fraction=0.25) == pytest.approx([8, 7.121320, 5, 2.878680, 2], abs=1e-6)


def test_cosine_begins_after_the_warm_up() -> None:
    assert rates(5, name="cosine", warmup_steps=1, final_fraction=0.5) == pytest.approx([4, 8, 7, 5, 4])


def test_wsd_is_flat_then_falls_in_a_straight_line() -> None:
    found = rates(8, name="wsd", warmup_steps=1, decay_steps=4, final_fraction=0)
    assert found == pytest.approx([4, 8, 8, 8, 6, 4, 2, 0])
    found = rates(8, name="wsd", warmup_steps=1, decay_steps=4, final_fraction=0.5)
    assert found == pytest.approx([4, 8, 8, 8, 7, 6, 5, 4])


def test_wsd_without_a_decay_is_flat_to_the_end() -> None:
    assert rates(4, name="wsd", final_fraction=0) == [8, 8, 8, 8]


def test_inverse_square_root_after_warm_up_or_after_a_flat_beginning() -> None:
    """T5 (section 3.1.2): 1 / sqrt(max(n, k)), here with k = 4 and a peak of 8 = 16 / sqrt(4)."""
    t5 = rates(16, name="inverse_sqrt", stable_steps=4)
    assert t5 == pytest.approx([16 / max(n, 4) ** 0.5 for n in range(1, 17)])
    warmed = rates(16, name="inverse_sqrt", warmup_steps=3, stable_steps=1)
    assert warmed[:4] == [2, 4, 6, 8]
    assert warmed[15] == pytest.approx(4)


@pytest.mark.parametrize("warmup", [1, 3, 10])
def test_inverse_square_root_falls_from_the_peak_as_that_of_transformers(warmup: int) -> None:
    """Theirs counts steps from 0 where ours, Vaswani's and T5's do from 1; `timescale` says so."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = get_inverse_sqrt_schedule(optimizer, num_warmup_steps=warmup, timescale=warmup + 1)
    expected = []
    for _ in range(60):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    found = rates(60, name="inverse_sqrt", warmup_steps=warmup)
    assert expected[warmup] == found[warmup] == PEAK
    assert found[warmup:] == pytest.approx(expected[warmup:])
    # Vaswani et al. 2017, equation 3, whose peak is at their step warmup_steps, counted from 1.
    knee = warmup + 1
    assert found == pytest.approx([PEAK * knee**0.5 * min(n**-0.5, n * knee**-1.5) for n in range(1, 61)])


def test_a_schedule_of_warm_up_and_one_step() -> None:
    assert rates(1, name="cosine") == [8]
    assert rates(2, name="cosine", warmup_steps=1) == [4, 8]


@pytest.mark.parametrize("name", ["cosine", "wsd"])
def test_the_rate_stays_where_it_ended(name: str) -> None:
    config = ScheduleConfig.model_validate({"name": name, "decay_steps": 2, "final_fraction": 0.5})
    assert [learning_rate(config, PEAK, steps=4, step=step) for step in (3, 4, 9)] == pytest.approx([4, 4, 4])
