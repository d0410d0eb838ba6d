"""Legal layouts against a statement of their own, and whether the fixes that a refusal names are fixes."""

import itertools
import re
from typing import Any

import pytest

from data_pipeline.errors import UserError
from llmscale.config import RunConfig, parse_config
from llmscale.legality import nearest_divisor, require_legal


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
        named = re.search(
            r"(train\.global_batch|data\.lanes) \((\d+)\).*\((\d+)\); use (\d+) ranks?, or set (\S+)$", message
        )
        assert named, message
        field, value, size, fewer, fix = named.groups()
        assert (int(value), int(size)) == ({"train.global_batch": global_batch, "data.lanes": lanes}[field], ranks)
        assert refusal(config(global_batch=global_batch, lanes=lanes), int(fewer)) is None, message
        assert field not in (refusal(config(fix, global_batch=global_batch, lanes=lanes), ranks) or ""), message


def test_the_nearest_divisor_is_nearest() -> None:
    for number, wanted in itertools.product(range(1, 40), range(1, 40)):
        found = nearest_divisor(number, wanted)
        assert number % found == 0
        for distance in range(abs(found - wanted)):
            assert all(other < 1 or number % other for other in (wanted - distance, wanted + distance))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parallel.data=3", "parallel.data is 3, but the run has 2 ranks; start 3 ranks, or leave parallel.data out"),
        ("parallel.data=1", "parallel.data is 1, but the run has 2 ranks; start 1 rank, or leave parallel.data out"),
        ("data.sequence_length=17", r"data.sequence_length \(17 tokens\) exceeds model.max_positions \(16\)"),
        ("data.sequence_length=15", None),
        ("parallel.data=2", None),
    ],
)
def test_other_limits_on_two_ranks(override: str, message: str | None) -> None:
    if message is None:
        require_legal(config(override), 2)
    else:
        with pytest.raises(UserError, match=message):
            require_legal(config(override), 2)


def test_layers_are_compiled_at_every_stage_but_three() -> None:
    for stage in (1, 2):
        require_legal(config("engine.compile=true", f"engine.zero_stage={stage}"), 2)
    require_legal(config("engine.zero_stage=3"), 2)
    with pytest.raises(UserError, match=r"engine\.compile is true, but engine\.zero_stage is 3"):
        require_legal(config("engine.compile=true", "engine.zero_stage=3"), 2)


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
        ("objective={name: masked}", *BERT),
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
