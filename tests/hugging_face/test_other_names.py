"""Keys of config.json that transformers' classes know by two names: the other one counts for more."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from llmscale.families import with_class
from llmscale.hugging_face.classes import table_of
from tests.hugging_face.references import CASES
from tests.hugging_face.test_config_keys import ABSENT, Values, changed, differences, saved

__all__ = ["saved"]
BASES = [name for name in with_class() if name in CASES]


def other_names(name: str) -> dict[str, str]:
    return dict(getattr(transformers, CASES[name][1]).attribute_map)


def test_every_other_name_is_known() -> None:
    wanted = {name: other_names(name) for name in BASES if other_names(name)}
    assert len(wanted) > 8
    assert {name: dict(table_of(name).aliases or {}) for name in wanted} == wanted


SIZES = [
    (name, other)
    for name in BASES
    for other in other_names(name)
    if other not in ("num_mtp_layers", "hidden_size", "head_dim")
]


@pytest.mark.parametrize(
    ("name", "other"),
    [pytest.param(*case, marks=[] if case == ("gptj", "num_attention_heads") else pytest.mark.slow) for case in SIZES],
)
def test_it_counts_for_more(name: str, other: str, saved: tuple[Path, Values]) -> None:
    folder, values = saved(name)  # type: ignore[operator]
    key = other_names(name)[other]
    assert differences(name, folder, changed(values, {key: ABSENT, other: values[key]}), must_read=True) is None
    # Two heads fit as many channels as four; of the others the tensors say how many there are.
    wrong = {"num_attention_heads": 2, "max_position_embeddings": values[key] + 8}.get(other, values[key] - 1)
    assert differences(name, folder, changed(values, {other: wrong}), must_read=False) is None
