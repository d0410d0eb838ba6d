"""The forecast of `llmscale plan` beside the measured peak of a step, with and without tensor parallelism."""

import itertools

import pytest

from benchmarks.memory import FAMILIES, REPLICAS, VOCAB, config_of, measure_on_rank
from llmscale import layout as layouts
from llmscale.parity.ranks import run_ranks
from llmscale.plan.layout import layout_of
from llmscale.plan.memory import memory
from llmscale.plan.workload import Workload

SIZES = {"layers": 4, "hidden": 256, "length": 256, "micro": 2}
"""Large enough for what DeepSpeed keeps besides to be small."""
STAGES = (1, 2, 3)
TOLERANCE = 0.05


@pytest.mark.slow
def test_the_forecast_is_what_two_replicas_hold_at_most() -> None:
    for tensor, family, stage in itertools.product((1, 2), FAMILIES, STAGES):
        config = config_of(family, stage, tensor, **SIZES)
        ranks = REPLICAS * tensor
        found = run_ranks(ranks, measure_on_rank, config)
        layout = layout_of(config, layouts.layout_of(config, ranks), config.train.micro_batch)
        expected = memory(config, Workload(VOCAB, SIZES["length"]), layout, "cpu")
        measured = max(each["settled"] + each["step"] for each in found)
        assert expected.total == pytest.approx(measured, rel=TOLERANCE), (family, stage, tensor, expected, found[0])
