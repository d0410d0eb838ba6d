"""Vectors of texts: transformers' hidden states, the same bits in any batch, files that go on after a kill."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

import llmscale
from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from llmscale.checkpoint.model import load_model
from llmscale.embeddings import Embedder, Settings
from llmscale.hugging_face.exporting import export_checkpoint
from tests.evaluate.models import CONTEXT, FAMILIES, write_checkpoint
from tests.train.forked import Command, Finished, run

TEXTS = [
    "",
    "a",
    "床前明月光，疑是地上霜。",
    "an emoji \U0001f600 and e\u0301",
    "exactly sixteen!",
    "one more than it",
    *(f"{'some text of length ' * (number % 7)}{number}" for number in range(40)),
    "much longer than the context " * 20,
]


def frame(name: str, tokenizer: Tokenizer, text: str) -> list[int]:
    """What the model reads of a text."""
    special = tokenizer.special
    begin, end = ([special["cls"]], [special["sep"]]) if name == "bert" else ([], [special["eos"]])
    return [*begin, *list(tokenizer.encode(text))[: CONTEXT - len(begin) - 1], *end]


def hidden_states(name: str, theirs: Any, ids: list[int]) -> list[torch.Tensor]:
    tokens = torch.tensor([ids])
    body = theirs.encoder if name == "t5" else theirs.base_model
    with torch.no_grad():
        return [states[0] for states in body(input_ids=tokens, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize(
    ("name", "pooling", "layers", "normalize"),
    [
        ("bert", "first", (-1,), True),
        ("bert", "mean", (0, 1), False),
        ("gpt2", "last", (-1, -2), True),
        ("llama", "mean", (2,), False),
        ("t5", "mean", (-1,), True),
    ],
)
def test_vectors_are_made_of_transformers_hidden_states(
    name: str, pooling: str, layers: tuple[int, ...], normalize: bool, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "run", name)
    export_checkpoint(tmp_path / "run", tmp_path / "hf")
    kinds = {"bert": "BertForMaskedLM", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
    kind = getattr(transformers, kinds.get(name, "T5ForConditionalGeneration"))
    theirs = kind.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    model = llmscale.Model(tmp_path / "run")
    found = model.embed(TEXTS, pooling=pooling, layers=layers, normalize=normalize)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        states = hidden_states(name, theirs, frame(name, model.tokenizer, text))
        pooled = [
            {"first": states[layer][0], "last": states[layer][-1], "mean": states[layer].mean(0)}[pooling]
            for layer in layers
        ]
        expected = torch.stack(pooled).mean(0)
        expected = expected / expected.norm() if normalize else expected
        torch.testing.assert_close(torch.from_numpy(vector), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_the_same_bits_in_any_batch(name: str, tmp_path: Path) -> None:
    trained = load_model(write_checkpoint(tmp_path / "run", name))
    embedder = Embedder(trained.model, trained.tokenizer)
    expected = embedder.embed(TEXTS)
    draw = np.random.default_rng(2)
    for size in (1, 2, 3, 7, 64):
        order = draw.permutation(len(TEXTS))[: draw.integers(1, len(TEXTS) + 1)]
        found = embedder.embed([TEXTS[number] for number in order], batch_size=size)
        assert found.tobytes() == expected[order].tobytes(), size


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("bert") / "run", "bert")


def embed(checkpoint: Path, folder: Path, *arguments: object, output: str = "x.npy") -> Finished:
    return run("embed", checkpoint, "--device", "cpu", "--output", output, *arguments, cwd=folder)


def write_kinds(folder: Path, texts: list[str]) -> dict[str, list[str]]:
    """The same texts in every kind of file: the arguments of each."""
    rows = [{"body": text, "n": number} for number, text in enumerate(texts)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "t.csv").write_text("n,body\r\n" + "".join(f'{row["n"]},"{row["body"]}"\r\n' for row in rows))
    (folder / "t.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode() + b"\r\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    fields = ["--field", "body"]
    return {"t.jsonl": fields, "t.csv": ["--field", "{body}"], "t.parquet": fields, "t.txt": []}


def test_files_of_all_kinds(bert: Path, tmp_path: Path) -> None:
    texts = ["one", "", "床前明月光", "three words here", "\U0001f600"]
    expected = llmscale.Model(bert).embed(texts)
    for number, (name, options) in enumerate(write_kinds(tmp_path, texts).items()):
        output = f"{number}.{('npy', 'jsonl')[number % 2]}"
        done = embed(bert, tmp_path, "--input", name, *options, "--batch-size", number + 1, output=output)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{output}: 5 vectors of 64 numbers\n"
        if output.endswith(".npy"):
            found = np.load(tmp_path / output)
        else:
            rows = [json.loads(line) for line in (tmp_path / output).read_text().splitlines()]
            assert [row["text"] for row in rows] == texts
            found = np.array([row["embedding"] for row in rows], dtype=np.float32)
        assert found.tobytes() == expected.tobytes(), name
    assert {path.name for path in tmp_path.iterdir()} >= {"0.npy", "1.jsonl"}
    assert not list(tmp_path.glob(".*partial*"))


def test_it_goes_on_after_a_kill(bert: Path, tmp_path: Path) -> None:
    texts = [f"text {number} " * (number % 9) for number in range(2600)]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    command = ("embed", bert, "--device", "cpu", "--input", "t.txt", "--output", "x.npy")
    process = Command(*command, cwd=tmp_path)
    partial, deadline = tmp_path / ".x.npy.partial", time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.process.pid or 0, signal.SIGKILL)
    process.process.join()
    written = partial.stat().st_size // 256
    assert 0 < written < len(texts)
    assert not (tmp_path / "x.npy").exists()
    with open(partial, "ab") as file:
        file.write(b"\0" * 11)  # what a dead writer left of a vector
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{written:,} of them done before" in done.stderr
    assert np.load(tmp_path / "x.npy").tobytes() == llmscale.Model(bert).embed(texts, batch_size=512).tobytes()


def test_other_texts_begin_anew(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\nb\n")
    (tmp_path / ".x.npy.partial").write_bytes(b"\1" * 256)
    (tmp_path / ".x.npy.partial.json").write_text("{}")
    done = embed(bert, tmp_path, "--input", "t.txt")
    assert done.returncode == 0, done.stderr
    assert "done before" not in done.stderr
    assert np.load(tmp_path / "x.npy").tobytes() == llmscale.Model(bert).embed(["a", "b"]).tobytes()


def test_long_texts_are_cut_and_counted_or_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("short\n" + "x" * 200 + "\n" + "x" * 190 + "\n" + "x" * 300)
    done = embed(bert, tmp_path, "--input", "t.txt")
    assert done.returncode == 0, done.stderr
    assert f"2 of 4 texts were cut, since the context has {CONTEXT} tokens" in done.stderr
    found = np.load(tmp_path / "x.npy")
    assert found[1].tobytes() == found[2].tobytes() == found[3].tobytes()
    done = embed(bert, tmp_path, "--input", "t.txt", "--overflow", "refuse")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"llmscale: text 2 has 202 tokens, but model.max_positions is {CONTEXT}; shorten it, or give --overflow"
        f" truncate"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--input", "empty.txt"), "--input empty.txt has no text; give a file that has some"),
        (("--input", "none.txt"), "cannot read none.txt: No such file or directory; name a file of texts"),
        (("--input", "latin.txt"), "latin.txt is not UTF-8 text"),
        (("--input", "rows.jsonl"), "record 2 of rows.jsonl: it has no 'text'; repair it, or name another --field"),
        (("--input", "rows.jsonl", "--field", "n"), "'n' is a number, not a string; repair it, or name another"),
        (("--input", "rows.csv"), "--input: rows.csv has no field 'text' but 'texts'; did you mean 'texts'?"),
        (("--input", "a.txt", "--field", "text"), "--field is given, but a.txt is read as plain text"),
        (("--input", "a.txt", "--pooling", "max"), "--pooling is 'max', but must be one of first, last, mean"),
        (("--input", "a.txt", "--layers", "3"), "--layers has 3, but the model has the layers 0 (the embedding) to 2"),
        (("--input", "a.txt", "--layers", "top"), "--layers is 'top', but must be whole numbers"),
        (("--input", "a.txt", "--output", "x.txt"), "--output is x.txt, but must end in .npy or .jsonl"),
        (("--input", "a.txt", "--device", "tpu"), "--device is 'tpu', but must be one of auto, cpu, cuda"),
        (("--input", "a.txt", "--dtype", "int8"), "--dtype is 'int8', but must be one of auto, fp32, bf16, fp16"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], words: str, bert: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\xf6\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "n": 1}\n{"n": 2}\n')
    (tmp_path / "rows.csv").write_text("texts\na\n")
    done = embed(bert, tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_the_first_token_says_nothing_of_some_models(name: str, tmp_path: Path) -> None:
    model = llmscale.Model(write_checkpoint(tmp_path / "run", name))
    with pytest.raises(UserError, match="--pooling is first, but the model"):
        model.embed(["a"], pooling="first")


def test_narrow_types_are_near(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    done = embed(bert, tmp_path, "--input", "t.txt", "--dtype", "bf16")
    assert done.returncode == 0, done.stderr
    near = (np.load(tmp_path / "x.npy") * llmscale.Model(bert).embed(TEXTS)).sum(1)
    assert near.min() > 0.95
    assert float(np.median(near)) > 0.999


def test_a_contrastive_model_pools_as_it_was_trained(tmp_path: Path) -> None:
    from llmscale.config.model import HeadConfig
    from llmscale.parallel.init import build

    trained = load_model(write_checkpoint(tmp_path / "run", "bert"))
    head = HeadConfig(name="contrastive", pooling="first", normalize=False)
    model = build(trained.config.model.model_copy(update={"head": head}), trained.model.vocab_size, seed=1).eval()
    asked = Settings(pooling="first", normalize=False)
    for settings in (Settings(), asked):
        embedder = Embedder(model, trained.tokenizer, settings)  # type: ignore[arg-type]
        assert (embedder.pooling, embedder.normalize) == ("first", False)
