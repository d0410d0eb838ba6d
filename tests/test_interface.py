"""The Python interface, and every example of its guide."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llmscale
from data_pipeline.base.errors import UserError
from llmscale.hugging_face.exporting import export_checkpoint
from tests.tiny_run import write_tiny_run

ROOT = Path(__file__).parents[1]
IMPORT_SECONDS = 0.05


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples of the guide were run, one after the other, in a process of their own."""
    folder = tmp_path_factory.mktemp("interface")
    write_tiny_run(folder)
    guide = (ROOT / "docs/guide/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", guide, re.M | re.S)
    assert len(blocks) == 4
    done = python("\n".join(blocks), folder)
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder


def test_the_examples_of_the_guide_say_what_they_promise(folder: Path) -> None:
    output = (folder / "output.txt").read_text()
    # After what a run shows at its end.
    losses, *rest = output.partition("\ndone 20\n")[2].splitlines()
    first, last = map(float, re.findall(r"\d+\.\d+", losses))
    assert last < first - 0.3
    assert any(line.startswith("torch.Size([4, 32]) torch.Size([4, 32]) [0, 2, 4, 6]") for line in rest)


def test_importing_it_takes_milliseconds(tmp_path: Path) -> None:
    code = "import time; t = time.perf_counter(); import llmscale; print(time.perf_counter() - t)"
    seconds = min(float(python(code, tmp_path).stdout) for _ in range(5))
    assert seconds < IMPORT_SECONDS
    heavy = python("import llmscale, sys; print({'torch', 'pydantic', 'numpy'} & set(sys.modules))", tmp_path)
    assert heavy.stdout == "set()\n"


def test_scores_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = llmscale.Model(folder / "runs/mine")
    export_checkpoint(folder / "runs/mine", tmp_path / "hf")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    text = "abc def gh"
    [score] = model.score([text])
    tokens = torch.tensor([[model.tokenizer.special["eos"], *model.tokenizer.encode(text)]])
    with torch.no_grad():
        rows = reference(tokens).logits[0, :-1].log_softmax(-1)
    expected = rows.gather(1, tokens[0, 1:, None])[:, 0]
    assert score.tokens == tokens[0, 1:].tolist()
    assert score.log_probabilities == pytest.approx(expected.tolist(), abs=1e-5)
    assert score.total == pytest.approx(float(expected.sum()), abs=1e-4)
    assert model.score([""])[0].total == 0


def test_what_a_step_saw_is_what_its_loader_gives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = llmscale.Run("runs/mine/config.yaml")
    with run.loader() as loader:
        batch, ledger_sum = loader.take(8)
    assert run.ledger[0]["sum"] == f"{ledger_sum:016x}"
    seen: list[int] = []
    for piece in run.seen(step=1):
        if piece.sample == 0:
            seen += piece.tokens
    assert seen == [*batch.inputs[0].tolist(), int(batch.targets[0, -1])]


def test_mistakes_are_sentences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"train\.step"):
        llmscale.Run("config.yaml", "train.step=3")
    with pytest.raises(UserError, match="there is no checkpoint or run directory"):
        llmscale.Model("nowhere")
    model = llmscale.Model("runs/mine")
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        model.generate(["a"], max_new_tokens=0)
    with pytest.raises(UserError, match=r"has 65 tokens to read, but model.max_positions is 64"):
        model.score(["a" * 65])
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        llmscale.Modle  # noqa: B018
