"""Pipelines against one process in plain torch, alone and beside data and tensor parallelism; and whole runs that
change to a pipeline and back."""

import shutil
import signal
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmscale.config import RunConfig
from llmscale.objectives.loss import build_loss
from llmscale.parallel import init
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.plans import stage_layers
from llmscale.train.start import PREEMPTED
from tests.distributed.cases import Case, case_config, run_cases, write_corpus
from tests.distributed.pipelines import DROPPED, STEPS, Found, config_of, plain, train_on_rank
from tests.engine import cases as engine_cases
from tests.engine.cases import VOCAB
from tests.engine.references import VARIANTS, reference_optimizers, single_precision_muon
from tests.engine.test_precision import difference, gradients_on_rank, scaled_on_rank
from tests.ranks import run_ranks
from tests.systems import cases as twins
from tests.train.runs import evaluations, ledger, metrics

TOLERANCE = 1e-5
"""Relative, of losses and gradient norms over five steps in fp32 on another layout than one process."""

Row = tuple[str, str, dict[str, Any]]
"""Model, optimizer, and what else is set."""

DP2 = {"parallel__data": 2}
TP2 = {"parallel__tensor": 2}
SEQUENCE_PARALLEL = {**TP2, "parallel__sequence_parallel": True}
OFFLOAD = {"engine__offload": "optimizer"}
BLOCK, SELECTIVE = {"engine__activation_checkpointing": "block"}, {"engine__activation_checkpointing": "selective"}

# (ranks, stages) to the cases that share a start of the ranks.
CASES: dict[tuple[int, int], list[Row]] = {
    (2, 2): [
        ("gpt2", "sgd", {}),
        ("gpt2", "adamw", {**DROPPED, **BLOCK}),
        ("llama", "sgd", {}),
        ("llama", "adamw", SELECTIVE),
        ("gpt2", "sgd", OFFLOAD),
        ("bert", "sgd", {}),
        ("bert", "momentum", DROPPED),
        ("pangu", "sgd", {}),
        ("pangu", "adamw", DROPPED),
        ("deepseek", "adamw", BLOCK),
        ("relative", "sgd", {}),
        ("relative", "adamw", {"model__dropout_scheme": "t5", "model__dropout": 0.1}),
    ],
    (4, 4): [
        ("gpt2", "sgd", DROPPED),
        ("llama", "adamw", {}),
        ("pangu", "momentum", {}),
        ("relative", "sgd", BLOCK),
    ],
    (4, 2): [
        ("gpt2", "sgd", DP2),
        ("llama", "adamw", DP2),
        ("bert", "adamw", DP2),
        ("gpt2", "adamw", TP2),
        ("gpt2", "sgd", {**TP2, **OFFLOAD}),
        ("gpt2", "sgd", {**DP2, **OFFLOAD}),
        ("llama", "sgd", TP2),
        ("bert", "sgd", {**TP2, **DROPPED}),
        ("pangu", "sgd", TP2),
        ("deepseek", "sgd", {**SEQUENCE_PARALLEL, **SELECTIVE}),
        ("relative", "sgd", TP2),
        ("gpt2", "sgd", {**SEQUENCE_PARALLEL, **DROPPED}),
        ("llama", "adamw", {**SEQUENCE_PARALLEL, **SELECTIVE}),
        ("pangu", "sgd", {**SEQUENCE_PARALLEL, **BLOCK}),
        ("bert", "adamw", SEQUENCE_PARALLEL),
    ],
    (8, 2): [
        ("gpt2", "sgd", {**TP2, **DP2}),
        ("llama", "adamw", {**SEQUENCE_PARALLEL, **DP2, **DROPPED}),
    ],
    (8, 4): [("bert", "sgd", TP2)],
}


@cache
def expected(model: str, optimizer: str, changes: tuple[tuple[str, Any], ...]) -> Found:
    return plain(config_of(model, optimizer, **dict(changes)))


def reference(row: Row) -> Found:
    """The plain loop of a case; it has no layout and computes nothing again."""
    model, optimizer, changes = row
    return expected(model, optimizer, tuple(item for item in changes.items() if item[0].startswith("model")))


@pytest.mark.parametrize(
    ("ranks", "stages"), [pytest.param(*case, marks=() if case == (2, 2) else pytest.mark.slow) for case in CASES]
)
def test_losses_and_norms_equal_plain_torch(ranks: int, stages: int) -> None:
    rows = CASES[ranks, stages]
    configs = [config_of(model, name, parallel__pipeline=stages, **changes) for model, name, changes in rows]
    steps = STEPS if ranks < 8 else 3
    every = run_ranks(ranks, train_on_rank, configs, steps)
    for number, row in enumerate(rows):
        wanted = reference(row)
        for rank in every:
            found = rank[number]
            assert len(found.steps) == steps
            assert found.steps == [pytest.approx(figures, rel=TOLERANCE) for figures in wanted.steps[:steps]], row
            if steps == STEPS:
                assert found.evaluations == pytest.approx(wanted.evaluations, rel=TOLERANCE), row
            assert found.parameters == wanted.parameters, row
        assert_tied(row, ranks, stages, [rank[number].embedding for rank in every])


def assert_tied(row: Row, ranks: int, stages: int, embeddings: list[bytes | None]) -> None:
    """The first stage has the embedding; the last has the same to the bit where it is tied; no other has it."""
    share = ranks // stages
    first, *middle, last = [embeddings[start : start + share] for start in range(0, ranks, share)]
    assert None not in first
    assert not any(any(stage) for stage in middle)
    assert last == (first if row[0] != "llama" else [None] * share), row


def test_the_references_clip() -> None:
    """Errors of gradient scale would not show otherwise."""
    for rows in CASES.values():
        for row in rows:
            assert all(norm > config_of(*row[:2]).optimizer.clip for *_, norm in reference(row).steps), row


FAMILIES = {
    "bert_base": (),
    "gpt3_175b": ("model.layers=3",),
    "gpt_j_6b": ("model.rotary_fraction=0.5",),
    "gpt_neo_2_7b": ("model.positions=alibi",),
    "gpt_neox_20b": ("model.layers=3", "model.rotary_fraction=0.5"),
    "llama3_8b": (),
    "pangu_alpha_200b": (),
    "qwen3_8b": (),
}
"""Twins of every family of one dense stack, and what is set besides."""


def test_every_family_trains_as_plain_torch() -> None:
    stages = "parallel.pipeline=2", "train.micro_batch=2"
    every = run_ranks(2, twins.train_on_rank, [twins.twin(name, *FAMILIES[name], *stages) for name in FAMILIES])
    for number, name in enumerate(FAMILIES):
        expected, _ = twins.plain_torch(twins.twin(name, *FAMILIES[name]))
        for rank in every:
            assert rank[number] == [pytest.approx(row, rel=TOLERANCE) for row in expected], name


def test_optimizers_that_need_whole_tensors(tmp_path: Path) -> None:
    """As others have written them; and their state, from a pipeline to replicas and back."""
    configs = {name: engine_cases.case_config(**variant, train__micro_batch=4) for name, variant in VARIANTS.items()}
    staged = {name: with_stages(config) for name, config in configs.items()}
    with_state = [name for name in VARIANTS if name in ("lion", "adafactor-momentum", "muon")]
    expected = {}
    for name, config in configs.items():
        with single_precision_muon():
            expected[name] = engine_cases.plain_torch(config, 7, reference_optimizers)[0]
    for ranks in (2, 4):
        for rank in run_ranks(ranks, engine_cases.train_on_rank, list(staged.values())):
            for name, found in zip(staged, rank, strict=True):
                assert found == [pytest.approx(row, rel=TOLERANCE) for row in expected[name][:STEPS]], name
    for way, (before, after) in {"to": (configs, staged), "from": (staged, configs)}.items():
        folders = {name: tmp_path / way / name for name in with_state}
        run_ranks(2, engine_cases.save_all_on_rank, [(before[name], folders[name]) for name in with_state], 3, 0)
        cases = [(after[name], folders[name]) for name in with_state]
        for rank in run_ranks(2, engine_cases.resume_all_on_rank, cases, 3, 4):
            for name, found in zip(with_state, rank, strict=True):
                assert found == [pytest.approx(row, rel=TOLERANCE) for row in expected[name][3:]], (way, name)


def with_stages(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"pipeline": 2})})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
def test_compiled_layers_train_as_plain_ones() -> None:
    rows: list[Row] = [("gpt2", "sgd", {}), ("llama", "adamw", {})]
    configs = [config_of(*row[:2], parallel__pipeline=2, engine__compile=True) for row in rows]
    for figures, compiled in run_ranks(2, train_compiled_on_rank, configs, timeout=500):
        assert compiled, "nothing was compiled"
        for found, row in zip(figures, rows, strict=True):
            assert found.steps == [pytest.approx(figures, rel=TOLERANCE) for figures in reference(row).steps], row


def train_compiled_on_rank(configs: list[RunConfig]) -> tuple[list[Found], int]:
    """What `train_on_rank` gives, and how many graphs torch compiled for it."""
    from torch._dynamo.utils import counters

    found = train_on_rank(configs)
    return found, counters["stats"]["unique_graphs"]


def test_bf16_follows_fp32() -> None:
    rows: list[Row] = [("gpt2", "sgd", {}), ("llama", "adamw", {})]
    configs = [config_of(*row[:2], parallel__pipeline=2, engine__dtype="bf16") for row in rows]
    for rank in run_ranks(2, train_on_rank, configs):
        for found, row in zip(rank, rows, strict=True):
            wanted = [pytest.approx(figures, rel=0.05) for figures in reference(row).steps]
            assert found.steps == wanted, row
            assert [loss for loss, _ in found.steps] == pytest.approx([loss for loss, _ in reference(row).steps], 0.01)
            assert found.steps != [pytest.approx(figures, rel=TOLERANCE) for figures in reference(row).steps]


def test_bf16_masters_are_exact_and_gradients_are_summed_in_fp32() -> None:
    """Over micro batches, and over the two stages that have the embedding."""
    config = engine_cases.case_config(train__micro_batch=1, optimizer__clip=0.0, engine__dtype="bf16")
    exact = {name: parameter.detach().numpy() for name, parameter in engine_cases.build(config).named_parameters()}
    expected = run_ranks(1, plain_bf16_gradients, config)[0]
    masters, gradients = run_ranks(2, gradients_on_rank, [with_stages(config)])[0][0]
    assert masters.keys() == exact.keys()
    assert all(np.array_equal(masters[name], exact[name]) for name in exact)
    found, wanted = ({name: torch.from_numpy(value) for name, value in each.items()} for each in (gradients, expected))
    assert difference(found, wanted) < 1e-6


def plain_bf16_gradients(config: RunConfig) -> dict[str, Any]:
    """The first gradients of one process, each sample's in bf16, and their sums in fp32."""
    batch, loss = engine_cases.global_batch(0), build_loss(config.objective, config.model)
    model = engine_cases.build(config).to(torch.bfloat16)
    # Two tensors here too, so that autograd does not add up the gradients of both ends in bf16.
    model.head.weight = torch.nn.Parameter(model.embedding.weight.detach().clone())
    found: dict[str, Any] = defaultdict(float)
    for part in batch.split(1):
        (loss(model, part, None).sum() / float(batch.weights.sum())).backward()
        for name, parameter in model.named_parameters():
            found["embedding.weight" if name == "head.weight" else name] += parameter.grad.float().numpy()
            parameter.grad = None
    return dict(found)


def test_fp16_trains_near_fp32_and_skips_what_overflows() -> None:
    steps = 4
    powers = 10, 24
    configs = [
        config_of("gpt2", "sgd", engine__dtype="fp16", engine__initial_scale_power=power, parallel__pipeline=2, **TP2)
        for power in powers
    ]
    exact = engine_cases.plain_torch(config_of("gpt2", "sgd"), steps)[0]
    for rank in run_ranks(4, scaled_on_rank, configs, steps):
        for (figures, counters, same), power in zip(rank, powers, strict=True):
            scale = counters["loss_scaling"]["cur_scale"]
            if power == 10:
                assert figures == [pytest.approx(row, rel=1e-2) for row in exact]
                assert (counters["steps"], scale, same) == (0, 2**10, False)  # SGD counts no steps
            else:
                assert all(norm == float("inf") and loss > 0 for loss, norm in figures)
                assert (scale, same) == (2 ** (24 - steps + 1), True)


def test_same_layout_is_bit_identical() -> None:
    configs = [config_of("gpt2", "adamw", parallel__pipeline=2, **DP2, **DROPPED)]
    assert run_ranks(4, train_on_rank, configs) == run_ranks(4, train_on_rank, configs)


@pytest.mark.parametrize("layers", range(1, 13))
def test_every_layer_has_one_stage(layers: int) -> None:
    for stages in range(1, layers + 1):
        found = stage_layers(layers, stages)
        assert [layer for stage in found for layer in stage] == list(range(layers))
        sizes = [len(stage) for stage in found]
        assert max(sizes) - min(sizes) <= 1
        assert sizes[-1] == min(sizes), "the last stage has the head besides"
        inner = sizes[1:-1]
        assert inner == sorted(inner)


@pytest.mark.parametrize("model", ["gpt2", "llama", "bert", "pangu", "relative"])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_a_stage_has_its_part_of_the_whole_model(model: str, stages: int) -> None:
    """By name and to the bit; together the stages have everything, and twice only what two of them use."""
    config = config_of(model, "sgd").model
    whole = dict(init.build(config, VOCAB, seed=3).named_parameters())
    seen: list[str] = []
    for stage in range(stages):
        grid = RankGrid(pipeline=stages, rank=stage)
        part = dict(init.build(config, VOCAB, seed=3, grid=grid).named_parameters())
        for name, parameter in part.items():
            assert torch.equal(parameter, whole[name]), name
        blocks = {int(name.split(".")[1]) for name in part if name.startswith("blocks.")}
        assert blocks == set(stage_layers(config.layers, stages)[stage])
        seen += part
    assert set(seen) == set(whole)
    twice = {name: seen.count(name) for name in seen if seen.count(name) > 1}
    tied = {} if model == "llama" else {"embedding.weight": 2}
    assert twice == tied | ({"relative_bias.table.weight": stages} if model == "relative" else {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, and each run in one process."""
    folder = tmp_path_factory.mktemp("runs")
    write_corpus(folder)
    assert run_cases(1, [run(folder, name, name) for name in RUNS]) == [[0] * len(RUNS)]
    return folder


RUNS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "ramp": {
        "optimizer__name": "sgd", "optimizer__lr": 0.3, "model__tied_embeddings": False,
        "train__batch_ramp": "{start: 4, increment: 4, samples: 24}",
    },
    "from-weights": {"train__init_from": "adamw"},
}  # fmt: skip
"""One after the other: the last starts from what the first has learned."""


def run(folder: Path, directory: str, name: str, stop: Any = None, **changes: Any) -> Case:
    """A run in `directory`: `adamw` has a step without targets, `ramp` a growing batch."""
    settings = {"train__micro_batch": 3, **RUNS[name], **changes}
    if "train__init_from" in settings:
        settings["train__init_from"] = str(folder / settings["train__init_from"])
    return Case(case_config(folder, directory, **settings), few_targets=name == "adamw", stop=stop)


PIPELINE = {"parallel__pipeline": 2, "train__micro_batch": 2, "evaluation__batch": 4}


def test_whole_runs_equal_one_process(folder: Path) -> None:
    runs = [run(folder, f"{name}-staged", name, **PIPELINE) for name in RUNS]
    assert run_cases(2, runs) == [[0] * len(RUNS)] * 2
    for name in RUNS:
        assert_equal(folder / f"{name}-staged", folder / name)


@pytest.mark.parametrize("first", ["pipeline", pytest.param("data", marks=pytest.mark.slow)])
def test_preempted_on_one_layout_and_finished_on_another(folder: Path, first: str) -> None:
    layouts = [PIPELINE, {}] if first == "pipeline" else [{}, PIPELINE]
    stops = [(3, 1, signal.SIGTERM), None]
    for layout, stop, code in zip(layouts, stops, (PREEMPTED, 0), strict=True):
        runs = [run(folder, f"{name}-{first}-first", name, stop, **layout) for name in RUNS]
        assert run_cases(2, runs) == [[code] * len(RUNS)] * 2
    for name in RUNS:
        assert_equal(folder / f"{name}-{first}-first", folder / name)


def assert_equal(found: Path, wanted: Path) -> None:
    assert len(metrics(wanted)) >= 6
    assert ledger(found) == ledger(wanted)
    assert metrics(found) == [pytest.approx(row, rel=TOLERANCE) for row in metrics(wanted)], found.name
    assert evaluations(found) == [pytest.approx(row, rel=TOLERANCE) for row in evaluations(wanted)], found.name
