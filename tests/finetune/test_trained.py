"""Which tensors each mode trains, and the refusals."""

from typing import Any

import pytest

from data_pipeline.base.errors import UserError
from llmscale.config import RunConfig, parse_config
from llmscale.finetune.trained import Training, names_of, training_of

OBJECTIVES = {
    "gpt2": {"name": "causal"},
    "bert": {"name": "masked", "next_sentence": True},
    "t5": {"name": "denoising"},
}


def config(family: str, objective: Any = None, **finetune: Any) -> RunConfig:
    return parse_config(
        {
            "run": {"directory": "runs/a"},
            "data": {"sources": [{"paths": ["a.txt"]}]},
            "model": {"family": family, "layers": 12, "hidden_size": 8, "heads": 2, "max_positions": 16},
            "objective": objective or OBJECTIVES[family],
            "train": {"init_from": "other"},
            "finetune": finetune,
        }
    )


def training(family: str, **finetune: Any) -> Training:
    case = config(family, **finetune)
    return training_of(case.model, case.finetune, names_of(case.model))


LABELS = {"name": "classification", "labels": ["a", "b"]}


def starts(names: frozenset[str]) -> set[str]:
    """What the names begin with: a layer, or a module."""
    parts = [name.split(".") for name in names]
    layers = {".".join(part[: part.index("blocks") + 2]) for part in parts if "blocks" in part}
    return layers | {".".join(part[:2]) if part[0] == "encoder" else part[0] for part in parts if "blocks" not in part}


def test_everything() -> None:
    for family in ("gpt2", "bert", "t5"):
        case = config(family, train="all")
        assert training_of(case.model, case.finetune, names_of(case.model)).names == set(names_of(case.model))


def test_the_encoder_of_each_architecture() -> None:
    layers = {f"blocks.{i}" for i in range(12)}
    embeddings = {"embedding", "positions", "token_types", "embedding_norm"}
    assert starts(training("bert", train="encoder").names) == layers | embeddings
    found = starts(training("t5", train="encoder").names)
    # The embedding is the decoder's too.
    assert found == {f"encoder.blocks.{i}" for i in range(12)} | {"encoder.norm", "encoder.relative_bias"}


def test_the_head() -> None:
    assert starts(training("bert", train="head").names) == {"head", "next_sentence"}
    case = config("bert", LABELS, train="head")
    found = training_of(case.model, case.finetune, names_of(case.model))
    assert found.names == {
        f"classification.{part}.{kind}" for part in ("pooler", "classifier") for kind in ("weight", "bias")
    }


def test_the_last_layers() -> None:
    assert starts(training("gpt2", train="layers", layers=2).names) == {"blocks.10", "blocks.11", "norm"}
    assert starts(training("bert", train="layers", layers=1).names) == {"blocks.11", "head", "next_sentence"}
    assert starts(training("t5", train="layers", layers=3).names) == {"blocks.9", "blocks.10", "blocks.11", "norm"}


def test_patterns() -> None:
    names = training("gpt2", train=["blocks.1", "*.query.bias", "norm.weight"]).names
    assert "blocks.1.attention.output.weight" in names
    assert not any(name.startswith("blocks.10.") and "query.bias" not in name for name in names)
    assert len([name for name in names if name.endswith("query.bias")]) == 12
    assert "norm.weight" in names
    assert "norm.bias" not in names
    assert starts(training("t5", train=["decoder", "embedding"]).names) == {
        *(f"blocks.{i}" for i in range(12)),
        "norm",
        "relative_bias",
        "embedding",
    }


def test_what_is_drawn_anew_is_trained() -> None:
    found = training("bert", train="head", redraw_layers=1)
    assert starts(found.redrawn) == {"blocks.11"}
    assert starts(found.names) == {"blocks.11", "head", "next_sentence"}
    found = training("t5", train="encoder", redraw=["decoder"])
    assert starts(found.redrawn) == {*(f"blocks.{i}" for i in range(12)), "norm", "relative_bias"}
    assert found.redrawn < found.names


def test_rates() -> None:
    found = training("gpt2", layer_lr_decay=0.5, embedding_lr_factor=3)
    assert found.factor("norm.weight") == 1
    assert found.factor("blocks.11.attention.query.bias") == 0.5
    assert found.factor("blocks.0.attention.query.bias") == 0.5**12
    assert found.factor("embedding.weight") == found.factor("positions.weight") == 3 * 0.5**13
    found = training("t5", layer_lr_decay=0.5)
    assert found.factor("encoder.blocks.11.feed_forward.up.weight") == 0.5
    assert found.factor("encoder.norm.weight") == 1
    assert found.factor("encoder.relative_bias.table.weight") == 0.5**13
    assert training("gpt2").factors == {}


@pytest.mark.parametrize(
    ("family", "finetune", "parts"),
    [
        ("gpt2", {"train": "heads"}, ["finetune.train", "'heads'", "did you mean head"]),
        ("gpt2", {"train": "编码器"}, ["finetune.train", "all, encoder, head, layers"]),
        ("gpt2", {"train": []}, ["finetune.train", "empty"]),
        ("gpt2", {"train": ["block.1"]}, ["finetune.train", "'block.1'", "blocks.1"]),
        ("gpt2", {"train": ["*.querry.weight"]}, ["'*.querry.weight'", "query.weight"]),
        ("gpt2", {"train": ["😀"]}, ["'😀'", "the nearest are blocks"]),
        ("gpt2", {"redraw": ["blocks.12"]}, ["finetune.redraw", "'blocks.12'", "blocks.1"]),
        ("gpt2", {"train": "encoder"}, ["finetune.train is encoder", "decoder"]),
        ("gpt2", {"train": "head"}, ["finetune.train is head", "model.tied_embeddings"]),
        ("bert", {"redraw": ["decoder"]}, ["finetune.redraw is decoder", "encoder"]),
        ("gpt2", {"train": "layers", "layers": 13}, ["finetune.layers is 13", "12 layers"]),
        ("gpt2", {"redraw_layers": 13}, ["finetune.redraw_layers is 13", "12 layers"]),
        ("gpt2", {"train": "layers"}, ["finetune.layers is not given"]),
        ("gpt2", {"train": "head", "layers": 2}, ["finetune.layers is 2", "head"]),
        ("gpt2", {"layer_lr_decay": 0}, ["finetune.layer_lr_decay"]),
        ("gpt2", {"layer_lr_decay": 1.5}, ["finetune.layer_lr_decay"]),
        ("gpt2", {"embedding_lr_factor": -1}, ["finetune.embedding_lr_factor"]),
        ("gpt2", {"redraw_layers": -1}, ["finetune.redraw_layers"]),
        ("gpt2", {"train": 3}, ["finetune.train"]),
    ],
)  # fmt: skip
def test_mistakes(family: str, finetune: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        training(family, **finetune)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_without_a_checkpoint() -> None:
    raw = config("gpt2").model_dump(mode="json")
    raw["train"]["init_from"] = None
    with pytest.raises(UserError, match=r"train\.init_from"):
        parse_config(raw)
