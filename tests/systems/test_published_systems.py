"""The whole-run configs of published models: parameters, tokens, and how far a machine without any of it gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmscale.config import ModelConfig, RunConfig, load_config
from llmscale.layout import require_legal
from llmscale.model import skeleton
from llmscale.train.batch_size import batch_at
from tests.systems.published import PUBLISHED, ROOT, SYSTEMS, TWINS
from tests.train.forked import run

# Model settings that are sizes: the others are the same in a system and in its twin.
SIZES = {
    "layers", "encoder_layers", "hidden_size", "heads", "kv_heads", "head_size", "ffn_size", "vocab_size",
    "max_positions", "window", "relative_buckets", "relative_max_distance", "init_std",
}  # fmt: skip


def config(name: str, folder: Path = SYSTEMS) -> RunConfig:
    return load_config(folder / f"{name}.yaml")


def count(model: ModelConfig) -> int:
    """Parameters as publications count them: without the padding rows of the vocabulary, and of an encoder without
    its heads."""
    assert model.vocab_size is not None
    made = skeleton(model, model.vocab_size)
    sizes = {name: parameter.numel() for name, parameter in made.named_parameters()}
    fill = model.padded_vocab(model.vocab_size) - model.vocab_size
    width = {"embedding.weight": model.hidden_size, "head.weight": model.hidden_size, "head.bias": 1}
    sizes = {name: size - fill * width.get(name, 0) for name, size in sizes.items()}
    if model.architecture == "encoder":
        heads = ("head.", "next_sentence.classifier.")
        sizes = {name: size for name, size in sizes.items() if not name.startswith(heads)}
    return sum(sizes.values())


def test_there_is_a_config_and_a_twin_for_each_system() -> None:
    assert {path.stem for path in SYSTEMS.glob("*.yaml")} == set(PUBLISHED)
    assert {path.stem for path in TWINS.glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    published = PUBLISHED[name]
    counted = count(config(name).model)
    if published.released:
        assert counted == published.parameters
    assert counted == pytest.approx(published.parameters, rel=0.005)


def trained_tokens(made: RunConfig) -> int:
    """Tokens of all steps, walking through the batch ramp."""
    samples = 0
    for step in range(made.train.steps):
        if made.train.batch_ramp is None or samples >= made.train.batch_ramp.samples:
            samples += made.train.global_batch * (made.train.steps - step)
            break
        samples += batch_at(made.train, samples)
    return samples * made.data.sequence_length


@pytest.mark.parametrize("name", PUBLISHED)
def test_tokens_and_batches(name: str) -> None:
    published, made = PUBLISHED[name], config(name)
    if published.tokens is not None:
        assert trained_tokens(made) == pytest.approx(published.tokens, rel=0.005)
    if published.batch_tokens is not None:
        assert made.train.global_batch * made.data.sequence_length == pytest.approx(published.batch_tokens, rel=0.02)


@pytest.mark.parametrize(
    ("name", "tokens"), [("gpt3_175b", 375e6), ("mt_nlg_530b", 1e9)], ids=["gpt3_175b", "mt_nlg_530b"]
)
def test_warm_up_under_a_growing_batch(name: str, tokens: float) -> None:
    made = config(name)
    samples = 0
    for _ in range(made.schedule.warmup_steps):
        samples += batch_at(made.train, samples)
    assert samples * made.data.sequence_length == pytest.approx(tokens, rel=0.001)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_twin_is_its_system_but_for_sizes(name: str) -> None:
    system, twin = config(name), config(name, TWINS)
    assert _options(system.model) == _options(twin.model)
    assert _proportions(system) == pytest.approx(_proportions(twin), rel=0.05)
    assert _experts(system.model) == _experts(twin.model)
    # Rounded to whole layers, twins of the deepest models are too shallow by up to half.
    assert _depth(twin.model) == pytest.approx(_depth(system.model), rel=1.0)
    assert _depth(twin.model) >= _depth(system.model) / 2
    objective = twin.objective.model_dump()
    assert objective == system.objective.model_dump()
    assert (twin.train.batch_ramp is None) == (system.train.batch_ramp is None)


def _options(model: ModelConfig) -> dict[str, Any]:
    return model.model_dump(exclude=SIZES | {"experts"})


def _experts(model: ModelConfig) -> dict[str, Any] | None:
    return model.experts and model.experts.model_dump(exclude={"count", "ffn_size"})


def _depth(model: ModelConfig) -> float:
    return model.layers / model.hidden_size


def _proportions(made: RunConfig) -> dict[str, float]:
    model = made.model
    proportions = {
        "feed-forward": model.ffn_channels / model.hidden_size,
        "heads": model.heads * model.head_channels / model.hidden_size,
        "grouped queries": model.heads / model.kv_head_count,
        "encoder": model.encoder_layer_count / model.layers,
    }
    if model.window is not None:
        proportions["window"] = model.window / made.data.sequence_length
    if model.positions == "relative":
        proportions["buckets"] = model.relative_max_distance / model.relative_buckets
    return proportions


@pytest.mark.parametrize("name", PUBLISHED)
def test_dry_run(name: str) -> None:
    done = run("train", SYSTEMS / f"{name}.yaml", "--dry-run", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["layers"] == config(name).model.layers


@pytest.mark.parametrize("name", [name for name, known in PUBLISHED.items() if known.layout])
def test_layouts_are_those_of_the_authors(name: str) -> None:
    layout = PUBLISHED[name].layout
    assert layout is not None
    tensor, pipeline, data = layout
    made = config(name)
    assert (made.parallel.tensor, made.parallel.pipeline) == (tensor, pipeline)
    require_legal(made, tensor * pipeline * data)


def test_without_tokenizer_data_or_memory_there_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a line of text\n" * 2000)
    path = SYSTEMS / "wu_dao_2.yaml"
    alone = ("parallel={}", "engine.zero_stage=1")
    has_tokenizer = (*alone, "data.tokenizer={kind: bytes}", "data.holdout=0")
    has_data = (
        *has_tokenizer, "data.sources=[{paths: [text.txt], document: line}]", "data.lanes=4", "data.span_bytes=1000",
        "data.sequence_length=64", "data.workers=0",
    )  # fmt: skip
    for overrides, sentence in (
        (alone, "data.tokenizer.path: cannot read tokenizers/wu_dao/zh_en.model: No such file or directory; name a"),
        (has_tokenizer, "data.sources[0].paths: no file matches data/zh/*.jsonl.zst"),
        (has_data, "the model has 1,747.2 B parameters, 9,763 GiB of weights for each rank of this machine (1), but"),
    ):
        done = run("train", path, *overrides, f"run.directory=run-{len(overrides)}", "run.device=cpu", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        *_, last = done.stderr.strip().splitlines()
        assert last.startswith(f"llmscale: {sentence}"), done.stderr
        assert "Traceback" not in done.stderr


def test_the_counts_are_stated_nowhere_else() -> None:
    """The table in docs/guide/models.md is that of the configs."""
    script = [sys.executable, ROOT / "docs" / "systems_table.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
