"""What a refusal says, and whether the fixes that it names are fixes. All rules are swept in test_legal_layouts.py."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, parse_config
from llmscale.layout import data_parallel_size, require_legal
from llmscale.train.check import checked_config


def config(*overrides: str, global_batch: int = 12, lanes: int = 24) -> RunConfig:
    raw: dict[str, Any] = {
        "run": {"directory": "unused"},
        "data": {"sources": [{"paths": ["unused"]}], "sequence_length": 16, "lanes": lanes},
        "model": {"max_positions": 16},
        "train": {"global_batch": global_batch},
    }
    return parse_config(raw, list(overrides))


def refusal(checked: RunConfig, ranks: int) -> str | None:
    try:
        require_legal(checked, ranks)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("ranks", range(1, 14))
def test_batch_and_lanes_are_shared_evenly(ranks: int) -> None:
    for global_batch, lanes in itertools.product((1, 6, 8, 12, 13), (1, 4, 8, 13, 24)):
        even = [sum(1 for k in range(number) if k % ranks == 0) * ranks == number for number in (global_batch, lanes)]
        message = refusal(config(global_batch=global_batch, lanes=lanes), ranks)
        assert (message is None) == all(even), (global_batch, lanes)
        if message is None:
            continue
        named = re.fullmatch(
            r"(train\.global_batch|data\.lanes) \((\d+)\) must be a multiple of the data-parallel size \((\d+)\);"
            r" use (.*), or set (\S+)",
            message,
        )
        assert named, message
        field, value, size, others, fix = named.groups()
        assert (int(value), int(size)) == ({"train.global_batch": global_batch, "data.lanes": lanes}[field], ranks)
        assert field not in (refusal(config(fix, global_batch=global_batch, lanes=lanes), ranks) or ""), message
        for choice in re.findall(r"((?:\d+ or )?\d+) rank", others):
            for fewer in choice.split(" or "):
                assert refusal(config(global_batch=global_batch, lanes=lanes), int(fewer)) is None, message
        for choice in re.findall(r"parallel\.tensor=((?:\d+ or )?\d+)", others):
            for size in choice.split(" or "):
                override = f"parallel.tensor={size}"
                assert refusal(config(override, global_batch=global_batch, lanes=lanes), ranks) is None, message


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (
            ["parallel.data=3"],
            2,
            "the run has 2 ranks, but parallel.pipeline (1) x parallel.data (3) x parallel.context (1)"
            " x parallel.tensor (1) = 3; use parallel.data=2, or 3 ranks",
        ),
        (
            ["parallel.data=2", "parallel.tensor=2"],
            1,
            "the run has 1 rank, but parallel.pipeline (1) x parallel.data (2) x parallel.context (1)"
            " x parallel.tensor (2) = 4; use 4 ranks",
        ),
        (
            ["parallel.tensor=4"],
            6,
            "the run has 6 ranks, which is no multiple of parallel.pipeline (1) x parallel.context (1)"
            " x parallel.tensor (4) = 4; use 8 or 4 ranks, or parallel.tensor=2",
        ),
        (
            ["parallel.tensor=5", "model.vocab_multiple=96", "train.global_batch=30", "data.lanes=30"],
            60,
            "parallel.tensor (5) must divide model.heads (12); use parallel.tensor=6 or 4",
        ),
        (["parallel.data=2"], 2, None),
        (["parallel.tensor=2"], 2, None),
        (["data.sequence_length=15"], 2, None),
        (
            ["parallel.tensor=8", "model.heads=16", "model.kv_heads=2"],
            8,
            None,
        ),
        (
            ["model.heads=16", "model.kv_heads=16", "model.ffn_size=100", "parallel.tensor=8"],
            8,
            "parallel.tensor (8) must divide model.ffn_size (100); use parallel.tensor=4",
        ),
        (
            ["parallel.tensor=4", "model.kv_heads=6"],
            4,
            "parallel.tensor (4) must divide model.kv_heads (6), or be a multiple of it; use parallel.tensor=2",
        ),
        (
            ["parallel.tensor=2", "optimizer.name=muon"],
            2,
            "parallel.tensor=2 is not proven equal to one process yet with optimizer.name=muon, which needs whole"
            " tensors; use parallel.tensor=1",
        ),
    ],
)
def test_sentences(overrides: list[str], ranks: int, message: str | None) -> None:
    assert refusal(config(*overrides), ranks) == message


def test_sequences_fit_the_positions() -> None:
    message = refusal(config("data.sequence_length=17"), 2)
    assert message is not None
    assert message.startswith("data.sequence_length (17 tokens) exceeds model.max_positions (16)")


def test_layers_are_compiled_at_every_stage() -> None:
    for stage in (1, 2, 3):
        require_legal(config("engine.compile=true", f"engine.zero_stage={stage}"), 2)


def test_without_a_launcher_the_ranks_are_the_product_of_the_given_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(global_batch=12).model_dump(mode="json")))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert checked_config(path, ("parallel.data=3", "parallel.tensor=4")).parallel.tensor == 4
    assert checked_config(path, ("parallel.tensor=4",)).parallel.tensor == 4
    with pytest.raises(UserError, match=r"train\.global_batch \(12\) .* size \(5\)"):
        checked_config(path, ("parallel.data=5", "parallel.tensor=4"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"the run has 2 ranks, which is no multiple of .*parallel\.tensor \(4\) = 4"):
        checked_config(path, ("parallel.tensor=4",))


def test_sizes_that_do_not_multiply_are_told_alone_too() -> None:
    parallel = config("parallel.tensor=4", "parallel.pipeline=2").parallel
    assert data_parallel_size(parallel, 24) == 3
    with pytest.raises(UserError, match=r"has 20 ranks.*parallel\.pipeline \(2\).*parallel\.tensor \(4\) = 8"):
        data_parallel_size(parallel, 20)


ENCODER = ("model.architecture=encoder",)
BERT = ("model.family=bert", "model.max_positions=16")
TWO_STACKS = ("model.architecture=encoder_decoder",)
WRONG_OBJECTIVES = [
    # (settings, the sentence up to the fix, fixes each of which makes it legal)
    *[
        (
            (f"objective.name={name}", *ENCODER),
            f"objective.name is {name}, which trains a decoder, but model.architecture is encoder;",
            [("objective={name: masked}",), ("model.architecture=decoder",)],
        )
        for name in ("causal", "prefix")
    ],
    *[
        (
            (f"objective.name={name}", *TWO_STACKS),
            f"objective.name is {name}, which trains a decoder, but model.architecture is encoder_decoder;",
            [("objective={name: denoising}",), ("model.architecture=decoder",)],
        )
        for name in ("causal", "prefix")
    ],
    (
        ("objective.name=masked",),
        "objective.name is masked, which trains an encoder, but model.architecture is decoder;",
        [("objective={name: causal}",), ("model.architecture=encoder",)],
    ),
    (
        ("objective.name=masked", *TWO_STACKS),
        "objective.name is masked, which trains an encoder, but model.architecture is encoder_decoder;",
        [("objective={name: denoising}",), ("model.architecture=encoder",)],
    ),
    (
        ("objective.name=denoising",),
        "objective.name is denoising, which trains an encoder_decoder, but model.architecture is decoder;",
        [("objective={name: causal}",), ("model.architecture=encoder_decoder",)],
    ),
    (
        ("objective.name=denoising", *ENCODER),
        "objective.name is denoising, which trains an encoder_decoder, but model.architecture is encoder;",
        [("objective={name: masked}",), ("model.architecture=encoder_decoder",)],
    ),
    (
        ("objective={name: seq2seq, target_length: 4}",),
        "objective.name is seq2seq, which trains an encoder_decoder, but model.architecture is decoder;",
        [("objective.concatenate=true", "data.sequence_length=8"), ("model.architecture=encoder_decoder",)],
    ),
    (
        ("objective={name: seq2seq, concatenate: true, target_length: 4}", "data.sequence_length=8", *TWO_STACKS),
        "objective.name is seq2seq with concatenate, which trains a decoder, but model.architecture is"
        " encoder_decoder;",
        [("objective.concatenate=false",), ("model.architecture=decoder",)],
    ),
    (
        ("objective={name: seq2seq, target_length: 4}", *ENCODER),
        "objective.name is seq2seq, which trains an encoder_decoder, but model.architecture is encoder;",
        [("objective={name: masked}",), ("model.architecture=encoder_decoder",)],
    ),
    (
        ("objective={name: seq2seq, concatenate: true, target_length: 4}", "data.sequence_length=8", *ENCODER),
        "objective.name is seq2seq with concatenate, which trains a decoder, but model.architecture is encoder;",
        [("objective={name: masked}",), ("model.architecture=decoder",)],
    ),
    (
        ("objective={name: masked}", "model.next_sentence=true", *BERT),
        "objective.next_sentence is false, but model.next_sentence is true;",
        [("objective.next_sentence=true",), ("model.next_sentence=false",)],
    ),
    (
        ("objective={name: masked, next_sentence: true}", *ENCODER),
        "objective.next_sentence is true, but model.next_sentence is false;",
        [("objective.next_sentence=false",), ("model.next_sentence=true", "model.token_types=2")],
    ),
    (
        ("objective={name: causal}", "model.family=bert", "model.max_positions=16"),
        "objective.name is causal, which trains a decoder, but model.architecture is encoder;",
        [("objective={name: masked, next_sentence: true}",)],
    ),
    (
        ("objective={name: masked, next_sentence: true}", "logging.sample_prompts=[a]", *BERT),
        "logging.sample_prompts are given, but model.architecture is encoder, which continues no text;",
        [("logging.sample_prompts=[]",)],
    ),
]


@pytest.mark.parametrize(("settings", "sentence", "fixes"), WRONG_OBJECTIVES)
def test_objectives_that_an_architecture_cannot_learn(
    settings: tuple[str, ...], sentence: str, fixes: list[tuple[str, ...]]
) -> None:
    message = refusal(config(*settings), 2)
    assert message is not None
    assert message.startswith(sentence), message
    for fix in fixes:
        assert refusal(config(*settings, *fix), 2) is None, fix


def test_a_refused_objective_names_its_fixes() -> None:
    """Taken from the sentence itself, each is one: whatever it says to set."""
    for settings, _, _ in WRONG_OBJECTIVES:
        message = refusal(config(*settings), 2) or ""
        setting = r"((?:model|objective)\.\S+=\w+)"
        named = re.findall(rf"(?:set|use) {setting}(?: and {setting})?", message)
        for first, second in named:
            # Another objective has other settings.
            first = re.sub(r"^objective\.name=(\w+)", r"objective={name: \1}", first)  # noqa: PLW2901
            still = refusal(config(*settings, *filter(None, (first, second))), 2) or ""
            assert not still.startswith(message[:40]), (message, first, still)


def test_every_objective_is_legal_with_its_architecture() -> None:
    for settings in (
        ("objective.name=causal",),
        ("objective.name=prefix",),
        ("objective={name: seq2seq, concatenate: true, target_length: 4}", "data.sequence_length=12"),
        ("objective.name=masked", *ENCODER),
        ("objective={name: masked, next_sentence: true}", *BERT),
        ("objective.name=denoising", *TWO_STACKS),
        ("objective.name=seq2seq", *TWO_STACKS),
    ):
        assert refusal(config(*settings), 2) is None, settings
