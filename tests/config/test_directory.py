"""Placeholders in run.directory, line breaks in overrides, and overrides that are printed for a shell."""

import subprocess

import pytest
import yaml

from data_pipeline.base.errors import UserError
from llmscale.config import override_word, parse_config, resolve_directory

SOURCES = {"sources": [{"paths": ["x"]}]}
ELEMENT = {"SLURM_JOB_ID": "4713", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "2"}


def config(directory="run", *overrides):
    return parse_config({"run": {"directory": directory}, "data": dict(SOURCES)}, overrides)


@pytest.mark.parametrize(
    ("directory", "environment", "found"),
    [
        ("runs/{job}/{array_task}", ELEMENT, "runs/4711/2"),
        ("runs/a-{job}", {"SLURM_JOB_ID": "7"}, "runs/a-7"),
        ("{array_task}{array_task}", ELEMENT, "22"),
        ("runs/plain", {}, "runs/plain"),
        ("runs/{a b} {", {}, "runs/{a b} {"),
    ],
)
def test_each_element_of_an_array_has_a_directory(directory, environment, found):
    assert resolve_directory(config(directory), environment).run.directory == found


@pytest.mark.parametrize(
    ("directory", "environment", "missing"),
    [
        ("runs/{job}", {}, "SLURM_JOB_ID"),
        ("runs/{job}-{array_task}", {"SLURM_JOB_ID": "7"}, "SLURM_ARRAY_TASK_ID"),
    ],
)
def test_outside_slurm_there_is_no_value(directory, environment, missing):
    with pytest.raises(UserError, match=missing):
        resolve_directory(config(directory), environment)


@pytest.mark.parametrize("directory", ["runs/{jobs}", "runs/{}", "{user}/x"])
def test_an_unknown_placeholder_is_refused(directory):
    with pytest.raises(UserError, match=r"is not known; \{job\} and \{array_task\} are"):
        config(directory)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("first\nsecond", "first\nsecond"),
        ("a\n\n  b\n", "a\n\n  b\n"),
        ('"a\nb"', "a\nb"),
        ("'a \n\tb'", "a \n\tb"),
        ('"a\\nb"', "a\nb"),
        ("one line", "one line"),
    ],
)
def test_a_line_break_in_an_override_stays_one(text, found):
    assert config("run", f"run.directory={text}").run.directory == found
    quoted = text if text[0] in "'\"" else f'"{text}"'
    assert config("run", f"logging.sample_prompts=[x, {quoted}]").logging.sample_prompts == ["x", found]


def test_overrides_of_several_lines_are_still_yaml():
    sources = config("run", "data.sources=- paths: [a]\n- paths:\n  - b\n  - c").data.sources
    assert [source.paths for source in sources] == [["a"], ["b", "c"]]
    assert config("run", "train.steps=\n 7\n").train.steps == 7


@pytest.mark.parametrize("value", ["plain", "a b", "$(reboot) `x`", "it's", "a: b", "#1", "7", "true", "x\ny", "[a]"])
def test_a_printed_override_reads_back_in_a_shell(value):
    word = override_word("run.directory", value)
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {word}"], capture_output=True, text=True, check=True).stdout
    assert config("run", *said.split("\0")[:-1]).run.directory == value
    assert "\n" in value or yaml.safe_load(said.split("=", 1)[1].rstrip("\0")) == value
