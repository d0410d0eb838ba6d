"""The benchmarks' own arithmetic and contenders, on tiny models."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import finetune_contenders, generate, gpu, train_step
from benchmarks.contenders import Shape, build_bare_step, build_gemm_step, build_transformers_step
from benchmarks.harness import Contender, Ratio, Sample, alternate, bar, percentile, ratio
from llmscale.config import ModelConfig
from llmscale.model import linear, skeleton
from llmscale.parallel.init import build

TINY = Shape(layers=2, hidden=32, heads=2, ffn=64, sequence=16, batch=2, vocabulary=50)
SERVER = """
from benchmarks.harness import serve
def build():
    print("noise of a library")
    values = iter([3.0, 2.0, 1.0])
    return lambda: next(values)
serve(build)
"""


def samples_of(walls: list[float]) -> list[Sample]:
    return [Sample(wall, 2 * wall, 0.0) for wall in walls]


def test_a_contender_steps_on_command_and_reports_its_end() -> None:
    contender = Contender("counting", [sys.executable, "-c", SERVER])
    alternate([contender], warmup=1, steps=2)
    assert [sample.value for sample in contender.samples] == [2.0, 1.0]
    assert all(sample.wall >= 0 and sample.cpu >= 0 for sample in contender.samples)
    with pytest.raises(RuntimeError, match="contender 'counting' ended with code 1"):
        contender.step()
    contender.close()


def test_ratios_of_percentiles() -> None:
    assert percentile([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == 2.0
    same = ratio(samples_of([2.0] * 40), samples_of([1.0] * 40), "wall")
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)
    generator = torch.Generator().manual_seed(0)
    noise = (1 + torch.rand(2, 60, generator=generator)).tolist()
    noisy = ratio(samples_of([3 * value for value in noise[0]]), samples_of(noise[1]), "cpu")
    assert noisy.low < noisy.value < noisy.high
    assert noisy.low < 3 < noisy.high


@pytest.mark.parametrize(
    ("limit", "interval", "met"),
    [
        ({"at_least": 1.3}, (1.31, 1.5), True),
        ({"at_least": 1.3}, (1.29, 1.5), False),
        ({"at_most": 1.05}, (0.9, 1.04), True),
        ({"at_most": 1.05}, (0.9, 1.06), False),
    ],
)
def test_a_bar_needs_the_whole_interval(limit: dict[str, float], interval: tuple[float, float], met: bool) -> None:
    assert bar("name", Ratio(1.0, *interval), **limit)["met"] is met


@pytest.mark.parametrize("family", train_step.SHAPES)
def test_contenders_learn_the_batch(family: Any) -> None:
    shape = replace(TINY, family=family)
    for step in (build_bare_step(shape), build_transformers_step(shape, compiled=False)):
        losses = [step() for _ in range(6)]
        # T5 starts from larger weights.
        assert losses[0] == pytest.approx(torch.tensor(50.0).log().item(), abs=1.0 if family == "t5" else 0.1)
        assert losses[-1] < losses[0]
    assert build_gemm_step(shape)() == build_gemm_step(shape, own=True)() == 0.0


def test_operations_are_six_per_weight_and_token() -> None:
    for shape in (train_step.SHAPES["gpt2"], train_step.SHAPES["llama"], *gpu.SIZES.values()):
        model = skeleton(ModelConfig(**shape.model), shape.vocabulary)
        in_products = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2) + model.head.weight.numel()
        assert shape.flops == 6 * in_products * shape.tokens_per_step


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_operations_are_those_that_pytorch_counts(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", False)  # whose products the counter passes over
    shape = replace(TINY, family=family, vocabulary=128)  # which needs no padding
    model, batch = build(ModelConfig(**shape.model), shape.vocabulary, seed=0), shape.training_batch
    with FlopCounterMode(display=False) as counter:
        hidden = model(batch.inputs, encoder_inputs=batch.encoder_inputs).hidden
        # Not by the loss, whose products are made in place, which the counter passes over.
        model.head(hidden[batch.weights > 0]).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    products = {torch.ops.aten.mm, torch.ops.aten.addmm}
    assert shape.flops == sum(flops for operation, flops in counted.items() if operation in products)


def test_the_closing_line_is_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = {name: samples_of([1.0 + index] * 40) for index, name in enumerate(train_step.CONTENDERS)}
    monkeypatch.setattr(train_step, "_measure", lambda *_: made_up)
    monkeypatch.setattr(sys, "argv", ["train_step"])
    train_step.main()
    line = json.loads(capsys.readouterr().out)
    assert (line["benchmark"], line["figures"]["bert"]["bare"]["tokens_per_second"]) == ("train_step", 1024)
    assert [set(row) for row in line["bars"]] == [{"name", "value", "interval", "bar", "met"}] * 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_benchmark_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "needs a CUDA device" in said.err


def test_both_sides_generate_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "NEW", 12)
    for batch in (1, 3):
        shape = generate.Shape(layers=2, hidden=128, vocabulary=300, batch=batch)
        ours, theirs = generate.build_ours(shape), generate.build_theirs(shape)
        assert ours() == theirs()


def test_the_generation_benchmark_compares_medians() -> None:
    sides = {
        "llmscale": samples_of([1.0, 1.0, 9.0, 1.0, 1.0]),
        "transformers": samples_of([2.0, 2.0, 2.0, 0.1, 2.0]),
    }
    figures, bars = generate.compare({"6x384-8192-8": sides, "6x384-50257-1": sides}, threads=2)
    assert figures["6x384-8192-8"]["speed over transformers (wall)"][0] == 2.0
    assert figures["6x384-8192-8"]["llmscale tokens/s"] == 8 * 128
    assert [(row["value"], row["bar"]) for row in bars] == [(2.0, ">= 1.5")] * 2


def test_fine_tuning_pads_to_the_longest_row() -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [1]}, {"input_ids": [8], "labels": [2, 3]}]
    batch = finetune_contenders._padded(rows, pad=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, -100], [2, 3]]
