"""Families in layouts of up to eight ranks beside one process by SGD with active clipping, one of each by AdamW too."""

from __future__ import annotations

import pytest

from llmscale.parity.compare import compare
from tests.parity.cases import DISTINCT, covering_cases, family, layout_of

MOST = 40
"""Cases in CI."""


def test_there_are_few_cases() -> None:
    cases = covering_cases()
    assert len(cases) <= MOST
    assert {name for name, _ in cases} == set(DISTINCT)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTINCT)
def test_layouts_compute_what_one_process_does(name: str) -> None:
    cases = [case for case in covering_cases() if case[0] == name]
    config = family(name)
    if config.model.activation == "relu":
        # A ReLU's gradient jumps at 0: whether a unit that lies there is on is decided by rounding (docs/log.md).
        smooth = config.model.model_copy(update={"activation": "gelu_tanh"})
        config = config.model_copy(update={"model": smooth})
    layouts = [layout_of(case) for case in cases]
    verdicts = [*compare(config, layouts, optimizers=["sgd"]), *compare(config, layouts[:1], optimizers=["adamw"])]
    assert len(verdicts) == len(cases) + 1 > 1
    assert [verdict for verdict in verdicts if not verdict.within] == []
