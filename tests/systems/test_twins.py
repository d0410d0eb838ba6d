"""Every twin as a user meets it, through real processes: it trains, is stopped and resumed to the bit, evaluates,
reports and generates."""

from __future__ import annotations

import json
import signal
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers

from data_pipeline.base.records import read_records
from data_pipeline.tokenizer import load_tokenizer
from llmscale.checkpoint import newest_intact
from llmscale.config import RunConfig, load_config
from llmscale.train.finish import SAMPLE_TOKENS
from tests.systems.published import PUBLISHED, ROOT, TWINS
from tests.train import forked
from tests.train.runs import evaluations, ledger, metrics

STEPS = 50
AT_A_TIME = 2
GENERATE = ("decoder", "encoder_decoder")
"""Architectures whose checkpoints give text. Encoders give none."""
CHINESE = ("pangu_alpha_200b", "wu_dao_2")
TERMS = {
    "bert_base": "next_sentence_loss",
    "bert_large": "next_sentence_loss",
    "wu_dao_2": "router_loss",
    "mixtral_8x7b": "router_loss",
}
"""Second term of the loss."""


@dataclass(frozen=True)
class Outcome:
    """What a twin's processes left behind."""

    config: RunConfig
    whole: Path
    """Run directory of the run that was never stopped."""
    resumed: Path
    """The same run, stopped half way and started again."""
    stopped_at: int
    evaluation: dict[str, float]
    """What `llmscale eval` printed for the run's held-out files, or for the Chinese text."""
    generated: forked.Finished | None
    exported: Path
    """What `llmscale export` made of it."""
    imported: Path
    """And `llmscale import` of that."""
    pictures: set[str]


def play(name: str, folder: Path) -> Outcome:
    """Everything that is done with a twin; two of these go on at a time."""
    path, whole, resumed = TWINS / f"{name}.yaml", folder / "whole", folder / "resumed"
    config = load_config(path)
    settings = ("run.threads=1", "run.device=cpu")
    done = _run("train", path, f"run.directory={whole}", *settings)
    assert done.returncode == 0, done.stderr

    again = ("train", path, f"run.directory={resumed}", *settings)
    started = forked.Command(*again, cwd=ROOT)
    _wait_for_steps(resumed, STEPS // 2 - 5, started)
    started.signal(signal.SIGUSR1)
    stopped = started.finish(240)
    assert stopped.returncode == 75, stopped.stderr
    stopped_at = len(ledger(resumed))
    finished = _run(*again)
    assert finished.returncode == 0, finished.stderr

    evaluated = _run("eval", whole, *(part for file in _texts(name) for part in ("--data", file)), "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    reported = _run("report", whole)
    assert reported.returncode == 0, reported.stderr
    generated = None
    if config.model.architecture in GENERATE:
        (prompt,) = config.logging.sample_prompts
        how = ("--temperature", 0.8, "--top-p", 0.95, "--seed", config.run.seed, "--max-new-tokens", SAMPLE_TOKENS)
        generated = _run("generate", whole, "--prompt", prompt, *how)
    exported, imported = folder / "exported", folder / "imported"
    for arguments in (("export", whole, exported), ("import", exported, imported)):
        exchanged = _run(*arguments)
        assert exchanged.returncode == 0, exchanged.stderr
    pictures = {picture.stem for picture in (whole / "report").glob("*.png")}
    return Outcome(
        config, whole, resumed, stopped_at, json.loads(evaluated.stdout), generated, exported, imported, pictures
    )


def _run(*arguments: object) -> forked.Finished:
    return forked.Command(*arguments, cwd=ROOT).finish(240)


def _wait_for_steps(run: Path, count: int, started: forked.Command) -> None:
    deadline = time.monotonic() + 240
    path = run / "ledger.jsonl"
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert started.process.exitcode is None, started.finish().stderr
        time.sleep(0.002)
    raise AssertionError(f"{run} did not reach {count} steps: {started.finish(0).stderr}")


def _texts(name: str) -> list[Path]:
    """The files that a twin's config holds out; of the Chinese ones, the whole text."""
    if name in CHINESE:
        return [ROOT / "README.zh-CN.md"]
    return [Path(sysconfig.get_path("stdlib")) / file for file in ("textwrap.py", "tokenize.py")]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """The twins of the tests that were chosen, under way."""
    items = [item for item in request.session.items if item.module is request.module]
    names = list(dict.fromkeys(item.callspec.params["name"] for item in items))
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {name: pool.submit(play, name, tmp_path_factory.mktemp(name)) for name in names}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_twin_lives(name: str, outcomes: dict[str, Future]) -> None:
    outcome: Outcome = outcomes[name].result()
    rows = metrics(outcome.whole)
    assert [step for step, _, _ in rows] == list(range(1, STEPS + 1))
    assert sum(loss for _, loss, _ in rows[-5:]) / 5 < rows[0][1] - 1
    for path in (outcome.whole, outcome.resumed):
        assert json.loads((path / "outcome.json").read_text())["outcome"] == "done"

    assert 0 < outcome.stopped_at < STEPS
    assert metrics(outcome.resumed) == rows
    assert ledger(outcome.resumed) == ledger(outcome.whole)
    assert evaluations(outcome.resumed) == evaluations(outcome.whole)

    _check_evaluation(name, outcome, rows[0][1])
    term = TERMS.get(name)
    assert outcome.pictures >= {"loss", "learning_rate", "throughput", "gradient_norm"} | ({term} if term else set())
    if term:
        values = [row[term] for row in read_records(outcome.whole / "metrics.jsonl") if "loss" in row]
        assert len(values) == STEPS
        assert all(value > 0 for value in values)
    _check_exchange(outcome)
    if outcome.generated is not None:
        assert outcome.generated.returncode == 0, outcome.generated.stderr
        # The end of the training has generated the same.
        (sample,) = json.loads((outcome.whole / "summary.json").read_text())["samples"]
        # An encoder-decoder does not continue its prompt.
        prompt = sample["prompt"] if outcome.config.model.architecture == "decoder" else ""
        assert outcome.generated.stdout == f"{prompt}{sample['text']}\n"
        assert sample["text"]


def _check_evaluation(name: str, outcome: Outcome, first: float) -> None:
    summary = json.loads((outcome.whole / "summary.json").read_text())
    held_out = summary["evaluation"]
    # The only Chinese text that every machine has is a few pages, which a model learns by heart.
    assert held_out["loss"] < first - (0 if name in CHINESE else 1)
    assert set(summary["baselines"]) == {"xz", "unigram"}
    for key in ("documents", "loss", "perplexity", "bits_per_byte"):
        assert outcome.evaluation[key] > 0
    if name in CHINESE:
        return
    # The command finds what the trainer found on the same documents.
    for key in ("documents", "tokens", "bytes"):
        assert outcome.evaluation[key] == held_out[key]
    assert outcome.evaluation["loss"] == pytest.approx(held_out["loss"], rel=1e-6)


def _check_exchange(outcome: Outcome) -> None:
    """The weights came back to the bit, and transformers, where it has such a model, finds all of its own in them."""
    mine, back = newest_intact(outcome.whole), newest_intact(outcome.imported)
    assert sorted(mine.names) == sorted(back.names)
    rows = load_tokenizer(mine.tokenizer).vocab_size
    for name in mine.names:
        one, other = mine.full(name), back.full(name)
        # Rows that only fill the vocabulary up are not exchanged.
        padded = name in ("embedding.weight", "head.weight", "head.bias")
        assert torch.equal(one[:rows], other[:rows]) if padded else torch.equal(one, other), name
    config = json.loads((outcome.exported / "config.json").read_text())
    if config["model_type"] == "llmscale":
        return
    kind = getattr(transformers, config["architectures"][0])
    _, found = kind.from_pretrained(outcome.exported, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
