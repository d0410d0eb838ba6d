"""`llmscale plan` as a user meets it: output, exit codes, speed, and no torch."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.cli import cli
from llmscale.config import load_config
from tests.data_pipeline.tokenizer.vocabularies import t5_file

ROOT = Path(__file__).parents[2]
SYSTEMS = ROOT / "configs/systems"


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


def complaint(done: Result) -> str:
    """The one sentence of a refusal."""
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("llmscale: ")
    return sentence


def found(*arguments: str) -> dict[str, Any]:
    done = plan(*arguments, "--json")
    assert done.exit_code == 0, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_tables_show_what_the_json_says() -> None:
    arguments = (str(SYSTEMS / "llama3_8b.yaml"), "--gpus", "8", "--hardware", "a100")
    result, shown = found(*arguments), plan(*arguments)
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    assert f"{result['parameters']['total']:,}" in text
    assert f"{len(result['layouts'])} legal layouts on 8 GPUs fit" in text
    assert " ".join(result["layouts"][0]["overrides"]) in text
    assert "MFU is of 312 TFLOP/s" in text
    memory = result["layout"]["memory"]
    assert memory["total"] == sum(size for part, size in memory.items() if part not in ("total", "moment"))
    assert f"{memory['total'] / 2**30:.2f}" in text
    assert result["layout"]["seconds"] == pytest.approx(sum(result["layout"]["seconds_by_cause"].values()))


def test_the_best_layout_s_overrides_give_that_layout() -> None:
    path = str(SYSTEMS / "qwen3_8b.yaml")
    best = found(path, "--gpus", "8")["layouts"][0]
    again = found(path, *best["overrides"], "--gpus", "8")
    assert again["layout"]["layout"] == best["layout"]
    assert again["layout"]["seconds"] == best["seconds"]


def test_without_gpus_the_config_s_own_layout_is_forecast() -> None:
    result = found(str(SYSTEMS / "bert_base.yaml"), "parallel.data=4")
    assert result["gpus"] == 4
    assert result["layout"]["layout"]["data"] == 4
    assert result["layouts"] == []


def test_an_illegal_layout_of_the_config_is_named_beside_the_legal_ones() -> None:
    result = found(str(SYSTEMS / "llama3_8b.yaml"), "parallel.tensor=3", "--gpus", "8")
    assert "parallel.tensor (3)" in result["problem"]
    assert result["layout"] is None
    assert result["layouts"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hardware", "b200"], "--hardware is b200, which the table does not have; use one of a100, h100, h200"),
        (["--gpu-memory", "80"], "--gpu-memory is 80, which has no unit; write 80GiB"),
        (["--gpus", "37"], "--gpus is 37, on which no layout is legal"),
        (["--gpus", "1", "--gpu-memory", "16GiB"], "is the smallest number of GPUs on which one does: use --gpus"),
        (["parallel.tensor=3"], "parallel.tensor (3) must divide"),
        (["--calibration", "none.yaml"], "cannot read calibration file none.yaml"),
        (["model.layer=3"], "unknown key 'model.layer'"),
        (["model.vocab_size=null"], "model.vocab_size is not given, and the tokenizer's file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], words: str) -> None:
    assert words in complaint(plan(str(SYSTEMS / "llama3_8b.yaml"), *arguments))


@pytest.mark.parametrize("path", sorted(SYSTEMS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_system_can_be_planned(path: Path) -> None:
    assert found(str(path))["layout"]["seconds"] > 0


def test_plan_imports_no_torch_and_takes_two_seconds_at_530_billion_parameters(tmp_path: Path) -> None:
    script = (
        "import sys; from llmscale.cli import cli\n"
        "try: cli.main(prog_name='llmscale')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = [name for name in ('torch', 'deepspeed', 'transformers', 'datasets') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    config = SYSTEMS / "mt_nlg_530b.yaml"
    ranks = 256
    assert load_config(config).train.global_batch % 32 == 0
    command = [sys.executable, "-c", script, "plan", str(config), "--gpus", str(ranks), "--gpu-memory", "80GiB"]
    # From the second start on, Python has compiled the modules.
    kept = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    subprocess.run(command, capture_output=True, cwd=ROOT, env=kept, check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=kept, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "529,600,819,200" in done.stdout
    # It has one thread and waits for nothing, so that its share of a busy machine's cores is its time on an idle one.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_a_tokenizer_s_file_tells_the_vocabulary(tmp_path: Path) -> None:
    """As the run's own tokenizer has it, with the sentinels that the objective adds."""
    sizes = "layers: 1, hidden_size: 64, heads: 2, max_positions: 64, vocab_multiple: 1"
    config = tmp_path / "run.yaml"
    config.write_text(
        f"run: {{directory: runs/x}}\n"
        f"data: {{sources: [{{paths: [a.txt]}}], tokenizer: {{path: {t5_file(tmp_path)}}}, sequence_length: 64}}\n"
        f"objective: {{name: denoising}}\n"
        f"model: {{family: t5, architecture: encoder_decoder, {sizes}}}\n"
    )
    loaded = load_config(config, ())
    tokenizer = prepare_tokenizer(loaded.data, tmp_path / "own", roles=loaded.objective.roles(64))
    assert "sentinel_0" in tokenizer.special
    assert found(str(config))["parameters"]["embedding"] == 64 * tokenizer.vocab_size


def test_a_forecast_states_its_measured_error(tmp_path: Path) -> None:
    arguments = (str(SYSTEMS / "llama3_8b.yaml"), "--hardware", "h100")
    result, text = found(*arguments), " ".join(plan(*arguments).stdout.split())
    published, layout = result["hardware"]["published"], result["layout"]
    assert layout["seconds_of_nine_runs_in_ten"] == pytest.approx(
        [layout["seconds"] * published["low"], layout["seconds"] * published["high"]]
    )
    low, high = (f"{seconds:.4g}" for seconds in layout["seconds_of_nine_runs_in_ten"])
    assert f"expect {low} to {high} s a step" in text
    assert f"{published['runs']} published runs" in text
    calibration = tmp_path / "ours.yaml"
    calibration.write_text("matmul_fraction: 0.6")
    ours = found(*arguments, "--calibration", str(calibration))
    assert ours["hardware"]["published"] is None
    assert ours["layout"]["seconds_of_nine_runs_in_ten"] is None
    refused = complaint(plan(*arguments, "--calibration", str(write(tmp_path, "published: 1"))))
    assert "'published' is no figure of the hardware" in refused


def write(folder: Path, text: str) -> Path:
    path = folder / "calibration.yaml"
    path.write_text(text)
    return path
