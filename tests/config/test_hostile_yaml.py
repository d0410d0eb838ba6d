"""Configs that a few lines make huge, deep or strange end with one sentence, at once."""

import os
from pathlib import Path

import pytest

from data_pipeline.base.errors import UserError
from launcher.accelerate import launch_accelerate
from llmscale.config import load_config
from llmscale.config.yaml_files import load_yaml
from llmscale.plan.hardware import H100, calibrated
from tests.tiny_run import write_tiny_run

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
TEXTS = {
    "a bomb of aliases": BOMB,
    "a bomb of merged mappings": "a0: &a0 {k: 1}\n"
    + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n  k{n}: 1\n" for n in range(1, 12)),
    "an alias within itself": "a: &a [*a]\n",
    "3,000 lists": "train: " + "[" * 3_000 + "]" * 3_000,
    "3,000 mappings": "".join(f"{' ' * n}a:\n" for n in range(3_000)),
    "5,000 digits": "train: {steps: " + "9" * 5_000 + "}",
    "5,000 hexadecimal digits": "train: {steps: 0x" + "f" * 5_000 + "}",
    "a date that is none": "train: {steps: 2026-13-41}",
    "an empty integer": "train: {steps: !!int ''}",
    "a truth that is none": "train: {steps: !!bool x}",
    "a long text for a number": "train: {steps: " + "x" * 100_000 + "}",
    "control characters": "train: {steps: \x1b[2J}",
    "an object of Python": "train: !!python/object/apply:os.system [true]",
    "a list as a key": "? [a]\n: 1\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_config(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TEXTS[name])
    with pytest.raises(UserError) as caught:
        load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 1_000
    assert message.isprintable()


@pytest.mark.parametrize("name", TEXTS)
def test_a_calibration_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text(TEXTS[name])
    with pytest.raises(UserError) as caught:
        calibrated(H100, path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "text",
    ['{"a":' * 200_000, "[" * 200_000, '{"matmul_fraction": ' + "9" * 5_000 + "}", '{"matmul_fraction": NaN}',
     '{"memory": Infinity}', '{"memory": 1e400}', '{"memory": ' + "9" * 4_000 + "}"],
)  # fmt: skip
def test_a_calibration_file_of_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        calibrated(H100, path)
    assert len(str(caught.value)) < 1_000


def test_an_override_and_an_accelerate_config(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {steps: 1}")
    for value in ("[" * 3_000, "9" * 5_000, "2026-13-41", "{a: &a [*a]}"):
        with pytest.raises(UserError) as caught:
            load_config(tmp_path / "config.yaml", [f"train.steps={value}"])
        assert len(str(caught.value)) < 1_000
    (tmp_path / "cpu.yaml").write_text("num_processes: [" + "[" * 3_000)
    with pytest.raises(UserError, match=r"cpu\.yaml"):
        launch_accelerate(str(write_tiny_run(tmp_path)), (), str(tmp_path / "cpu.yaml"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_config_that_is_no_regular_file(tmp_path: Path, make: object) -> None:
    make(tmp_path / "config.yaml")  # type: ignore[operator]
    with pytest.raises(UserError, match="no regular file"):
        load_config(tmp_path / "config.yaml")


def test_aliases_that_people_use_are_read() -> None:
    text = "base: &base {layers: 2, sizes: [1, 2]}\nmodel:\n  <<: *base\n  heads: 4\nagain: [*base, *base]\nid: 0x7f\n"
    base = {"layers": 2, "sizes": [1, 2]}
    assert load_yaml(text) == {"base": base, "model": {**base, "heads": 4}, "again": [base, base], "id": 127}
