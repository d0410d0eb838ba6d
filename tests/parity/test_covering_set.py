"""Families in layouts of up to eight ranks beside one process by SGD with active clipping, one of each by AdamW too."""

from __future__ import annotations

import pytest

from llmscale.config import RunConfig
from llmscale.layout.text import LayoutText
from llmscale.parity.compare import Optimizer, Verdict, compare
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
    verdicts = [*verdicts_of(config, layouts, "sgd"), *verdicts_of(config, layouts[:1], "adamw")]
    assert len(verdicts) == len(cases) + 1 > 1
    assert [verdict for verdict in verdicts if not verdict.within] == []


def verdicts_of(config: RunConfig, layouts: list[LayoutText], optimizer: Optimizer) -> list[Verdict]:
    """What `compare` says. Where there are experts, a layout that differs has another try with other weights: rounding
    may decide which of two experts a token goes to, but hardly twice, and a real difference stays."""
    verdicts = list(compare(config, layouts, optimizers=[optimizer]))
    again = [layout for layout, verdict in zip(layouts, verdicts, strict=True) if not verdict.within]
    if config.model.experts is None or not again:
        return verdicts
    other = config.model_copy(update={"run": config.run.model_copy(update={"seed": config.run.seed + 1})})
    return [verdict for verdict in verdicts if verdict.within] + list(compare(other, again, optimizers=[optimizer]))
