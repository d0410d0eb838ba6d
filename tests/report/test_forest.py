"""Forest plots of differences, with ends that are infinite too."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from data_pipeline.base.errors import UserError
from llmscale.report.forest import ForestRow, check_picture, draw_forest

ROWS = [
    ForestRow("arc", "accuracy", "b", 0.1, 0.05, 0.15, "better", "better", True, 0.02),
    ForestRow("arc", "accuracy", "c", -0.1, -math.inf, math.inf, "cannot tell", "cannot tell: why", True, 0.02),
    ForestRow("text", "bits_per_byte", "", 0.0, -math.inf, math.inf, "cannot tell", "cannot tell: so", False),
]


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]


def test_each_row_has_its_name_and_its_verdict(tmp_path: Path) -> None:
    draw_forest(ROWS, tmp_path / "forest.svg", "models beside a", 0.9)
    words = texts(tmp_path / "forest.svg")
    for expected in ("arc · b", "arc · c", "text", "better", "cannot tell: why", "accuracy", "bits_per_byte"):
        assert words.count(expected) == 1
    assert words.count("difference with 90 % interval, better to the right") == 1
    assert words.count("difference with 90 % interval, better to the left") == 1


def test_equal_rows_are_drawn_with_equal_bytes(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        draw_forest(ROWS, tmp_path / name, "models", 0.95)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_pictures_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    check_picture(tmp_path / "a.PNG")
    with pytest.raises(UserError, match=r"a\.jpg, but its name must end in \.png or \.svg"):
        check_picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="does not exist; make it first"):
        check_picture(tmp_path / "none" / "a.png")
