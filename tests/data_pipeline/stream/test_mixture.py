"""Shares of sources against counting one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.stream.mixture import Mixture


def mixture(
    weights: list[float], stages: list[tuple[int, dict[str, float]]] | None = None, temperature: float = 1.0
) -> Mixture:
    """Sources s0, s1, ... with these weights, and 10 tokens a sample."""
    sources = [{"paths": ["x"], "label": f"s{i}", "weight": weight} for i, weight in enumerate(weights)]
    later = [{"from_tokens": tokens, "weights": shares} for tokens, shares in stages or []]
    config = DataConfig.model_validate({"sources": sources, "mixture": {"stages": later, "temperature": temperature}})
    return Mixture(config, [1] * len(weights), 10, seed=3)


def shares(mixed: Mixture, first: int = 0, samples: int = 1024 * 200) -> list[float]:
    """The share of each source in some samples."""
    before, after = mixed.counts(first), mixed.counts(first + samples)
    return [(b - a) / samples for a, b in zip(before, after, strict=True)]


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.001, 100), min_size=2, max_size=6), samples=st.integers(1, 20_000))
def test_shares_are_exact_to_a_sample_a_window(weights: list[float], samples: int) -> None:
    mixed = mixture(weights)
    counts = np.array(mixed.counts(samples))
    wanted = samples * np.array(weights) / sum(weights)
    assert counts.sum() == samples
    # Within a window the order is random; over whole windows only rounding is left.
    whole = np.array(mixed.counts(samples // 1024 * 1024))
    assert np.abs(whole - samples // 1024 * 1024 * np.array(weights) / sum(weights)).max() <= 2 + samples / 1024 * 0.02
    assert np.abs(counts - wanted).max() <= 2 + samples / 1024 * 0.02 + 4 * 1024**0.5


@settings(max_examples=10, deadline=None)
@given(weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=4), change=st.integers(1, 3000))
def test_counts_and_places_are_those_of_counting(weights: list[float], change: int) -> None:
    mixed = mixture(weights, [(10 * change, {"s0": 1.0, "s1": 3.0})])
    seen = [0] * len(weights)
    for k in range(4000):
        group = mixed.group(k)
        assert mixed.place(k) == (group, seen[group])
        seen[group] += 1
        if k % 617 == 0:
            assert mixed.counts(k + 1) == seen
        assert k < change or group < 2


def test_a_stage_begins_at_its_token() -> None:
    mixed = mixture([1, 0.001], [(5000, {"s1": 1.0})])
    groups = [mixed.group(k) for k in range(600)]
    assert groups[500:] == [1] * 100
    assert sum(groups[:500]) <= 1
    assert shares(mixed, first=500) == [0.0, 1.0]


def test_no_source_waits_long_for_its_turn() -> None:
    mixed = mixture([8, 1, 1])
    for group in range(3):
        places = [k for k in range(4096) if mixed.group(k) == group]
        assert max(b - a for a, b in itertools.pairwise(places)) < 100


def test_temperature_flattens_and_epochs_weigh_by_bytes() -> None:
    assert shares(mixture([9, 1], temperature=2.0)) == pytest.approx([0.75, 0.25], abs=1e-4)
    sources = [{"paths": ["x"], "epochs": epochs} for epochs in (1, 4)]
    config = DataConfig.model_validate({"sources": sources})
    assert shares(Mixture(config, [600, 100], 10, 0)) == pytest.approx([0.6, 0.4], abs=1e-4)


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ([1e308, 1e308], 1.0, [0.5, 0.5]),
        ([1e308, 5e307, 5e307], 1.0, [0.5, 0.25, 0.25]),
        ([1e-320, 3e-320], 1.0, [0.25, 0.75]),
        ([1, 3], 0.001, [0, 1]),
        ([0.2, 0.3], 0.0001, [0, 1]),
        ([3, 3, 1], 1e-300, [0.5, 0.5, 0]),
        # (1e-628)^(1 / 1000) = 10^-0.628 beside 1
        ([1e-320, 1e308], 1000.0, [0.2355 / 1.2355, 1 / 1.2355]),
    ],
)
def test_extreme_weights_and_temperatures(weights: list[float], temperature: float, expected: list[float]) -> None:
    assert shares(mixture(weights, temperature=temperature)) == pytest.approx(expected, abs=1e-4)
    later = mixture([1] * len(weights), [(10, {f"s{i}": w for i, w in enumerate(weights)})], temperature)
    assert shares(later, first=1) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=4), temperature=st.floats(0.5, 10))
def test_temperature_is_the_power_of_its_definition(weights: list[float], temperature: float) -> None:
    powers = np.array(weights) ** (1 / temperature)
    assert shares(mixture(weights, temperature=temperature)) == pytest.approx(powers / powers.sum(), abs=1e-4)


@pytest.mark.parametrize(
    ("sources", "stages", "says"),
    [
        ([{"weight": 1}, {}], [], r"data.sources.1 has no weight, but data.sources.0 has one"),
        ([{"weight": 1, "epochs": 2}, {"weight": 1}], [], r"data.sources.0 has a weight and epochs \(2.0\)"),
        ([{"weight": 1}, {"epochs": 1}], [], r"some have a weight and some epochs"),
        ([{"label": "a"}, {"label": "a"}], [], r"the label 'a' stands twice"),
        ([{}, {}], [(5, {"0": 1})], r"which have no weight"),
        ([{"weight": 1}, {"weight": 1}], [(50, {"x": 1})], r"stages.0.weights: no source is called 'x'"),
        ([{"weight": 1}, {"weight": 1}], [(50, {"0": 0})], r"stages.0.weights are {'0': 0.0}"),
        ([{"weight": 1}, {"weight": 1}], [(5, {"0": 1})], r"stages.0.from_tokens \(5\) is not a sample after"),
        ([{"weight": 1}, {"weight": 1}], [(90, {"0": 1}), (50, {"0": 1})], r"stages.1.from_tokens \(50\)"),
    ],
)
def test_shares_that_make_no_sense_are_refused(
    sources: list[dict[str, object]], stages: list[tuple[int, dict[str, float]]], says: str
) -> None:
    config = DataConfig.model_validate(
        {
            "sources": [{"paths": ["x"], **source} for source in sources],
            "mixture": {"stages": [{"from_tokens": tokens, "weights": shares} for tokens, shares in stages]},
        }
    )
    with pytest.raises(UserError, match=says):
        Mixture(config, [1] * len(sources), 10, 0)
