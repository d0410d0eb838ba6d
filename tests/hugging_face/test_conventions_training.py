"""What is trained from an imported model reads as the model was trained, and what is trained from scratch as before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.loader import TrainLoader
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.config import ObjectiveConfig
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.prepare.prepare import prepare
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.base import META_FILE
from llmscale.checkpoint.model import load_model
from llmscale.generate import Settings, generate
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.hugging_face.tokenizers import export_tokenizer
from tests.hugging_face.conventions import write_model
from tests.hugging_face.test_round_trips import write_checkpoint
from tests.train.forked import run

LENGTH = 16
LINES = [f"line {number}: {'ab ' * (number % 5)}" for number in range(120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    for kind in ("llama3", "gpt2", "t5"):
        write_model(folder / f"hf-{kind}", kind, **({"decoder_start_token_id": 2} if kind == "t5" else {}))
        import_directory(folder / f"hf-{kind}", folder / kind)
    (folder / "text.txt").write_text("\n".join(LINES) + "\n")
    rows = [json.dumps({"text": line, "target": f"answer {number}"}) for number, line in enumerate(LINES)]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    return folder


def data_of(folder: Path, kind: str, **settings: Any) -> DataConfig:
    sources = [{"paths": [str(folder / "text.txt")], "document": "line"}]
    tokenizer = load_model(folder / kind).config.data.tokenizer.model_dump()
    data = {"sources": sources, "tokenizer": tokenizer, "sequence_length": LENGTH, "lanes": 1, "workers": 0}
    return DataConfig.model_validate({**data, "shuffle_buffer": 1, **settings})


def batches(
    data: DataConfig, folder: Path, objective: ObjectiveConfig, start: Path | None, count: int = 40
) -> Iterator[Any]:
    """Of one sample each."""
    roles = objective.roles(data.sequence_length)
    prepare_tokenizer(data, folder / "tokenizer", roles=roles, begins_from=str(start) if start else None)
    loader = TrainLoader(
        data,
        load_tokenizer(folder / "tokenizer"),
        objective=objective,
        seed=1,
        dp_rank=0,
        dp_size=1,
        cache=folder / "cache",
    )
    for _ in range(count):
        yield loader.take(1)[0]
    loader.close()


@pytest.mark.parametrize("order", ["stream", "finite"])
def test_documents_begin_with_the_models_own_token(order: str, folder: Path, tmp_path: Path) -> None:
    data = data_of(folder, "llama3", order=order)
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "hf-llama3")
    begin, end = theirs.bos_token_id, theirs.eos_token_id
    documents = {(*theirs(line).input_ids, end) for line in LINES}
    rows, told = [], []
    for batch in batches(data, tmp_path, CausalObjective(), folder / "llama3"):
        inputs, targets = batch.inputs[0].tolist(), batch.targets[0].tolist()
        assert inputs[1:] == targets[:-1]
        weights = batch.weights[0].tolist()
        real = [bool(weight) or target == begin for target, weight in zip(targets, weights, strict=True)]
        assert all(not weight for target, weight in zip(targets, weights, strict=True) if target == begin)
        rows.append([inputs[0], *(target for target, kept in zip(targets, real, strict=True) if kept)])
        told.append(sum(weights))
    if order == "stream":
        assert rows[0][0] == begin
        assert all(first[-1] == second[0] for first, second in pairwise(rows))
        stream = [rows[0][0], *(token for row in rows for token in row[1:])]
        places = [place for place, token in enumerate(stream) if token == begin]
        found = [tuple(stream[first:second]) for first, second in pairwise(places)]
        assert len(found) > 30
        assert set(found) <= documents
        assert sum(told) == sum(token != begin for token in stream[1:])
    else:
        whole = [document for document in documents if any(_holds(row, document) for row in rows)]
        assert len(whole) > 10
        assert all(second == begin for row in rows for first, second in pairwise(row) if first == end)


def _holds(row: list[int], document: tuple[int, ...]) -> bool:
    return any(tuple(row[place : place + len(document)]) == document for place in range(len(row)))


def test_what_has_no_convention_reads_as_before(folder: Path, tmp_path: Path) -> None:
    """From scratch with the imported tokenizer, and of a model without a begin token: eos between documents."""
    for kind, start in (("llama3", None), ("gpt2", "gpt2")):
        data = data_of(folder, kind)
        place = tmp_path / kind
        rows = list(batches(data, place, CausalObjective(), folder / start if start else None, 20))
        meta = json.loads((place / "tokenizer" / META_FILE).read_text())
        assert ("conventions" in meta) == (start is not None)
        tokenizer = load_model(folder / kind).tokenizer
        end = tokenizer.special["eos"]
        documents = {tuple(tokenizer.encode(line)) for line in LINES}
        stream = [int(rows[0].inputs[0, 0]), *(token for row in rows for token in row.targets[0].tolist())]
        assert all(bool(row.weights.all()) for row in rows)
        assert (stream[0] == end) == (start is None)
        places = [-1, *(place for place, token in enumerate(stream) if token == end)]
        found = {tuple(stream[first + 1 : second]) for first, second in pairwise(places)} - {()}
        assert found <= documents
        assert len(found) > 15


def test_separate_documents_see_their_own_begin_token(folder: Path, tmp_path: Path) -> None:
    objective = CausalObjective(separate_documents=True)
    tokenizer = load_model(folder / "llama3").tokenizer
    begin = tokenizer.special["bos"]
    changes = 0
    for batch in batches(data_of(folder, "llama3"), tmp_path, objective, folder / "llama3"):
        inputs, segments, positions = (part[0].tolist() for part in (batch.inputs, batch.segment_ids, batch.positions))
        for place in range(1, LENGTH):
            if segments[place] != segments[place - 1]:
                assert (inputs[place], positions[place]) == (begin, 0)
                changes += 1
        assert sum(token == begin for token in inputs[1:]) == len(set(segments)) - 1
    assert changes > 20


def test_the_middle_is_moved_behind_the_begin_token(folder: Path, tmp_path: Path) -> None:
    objective = CausalObjective(fim_rate=1.0, fim_suffix_first_rate=0.0)
    data = data_of(folder, "llama3", sequence_length=48)
    tokens_seen = list(batches(data, tmp_path, objective, folder / "llama3", 10))
    special = json.loads((tmp_path / "tokenizer" / META_FILE).read_text())["special"]
    for batch in tokens_seen:
        tokens = batch.inputs[0].tolist()
        for place in range(1, len(tokens)):
            if tokens[place] == special["fim_prefix"] and tokens[place - 1] != special["eos"]:
                assert tokens[place - 1] == special["bos"]
        assert special["fim_prefix"] in tokens


def test_pairs_of_an_imported_model(folder: Path, tmp_path: Path) -> None:
    """A decoder reads the source after its begin token; the decoder of an encoder-decoder starts from its own token,
    and losses are those of transformers."""
    sources = [{"kind": "jsonl", "paths": [str(folder / "pairs.jsonl")], "target_field": "target"}]
    joined = Seq2SeqObjective(target_length=16, concatenate=True)
    rows = {line: f"answer {number}" for number, line in enumerate(LINES)}
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "hf-t5")
    model: Any = transformers.T5ForConditionalGeneration.from_pretrained(folder / "hf-t5").eval()
    ours = load_model(folder / "t5")
    data = data_of(folder, "t5", sources=sources, sequence_length=32)
    for batch in batches(data, tmp_path / "t5", Seq2SeqObjective(target_length=16), folder / "t5", 5):
        kept = batch.encoder_weights[0].bool()
        text = ours.tokenizer.decode(batch.encoder_inputs[0][kept].tolist())
        source = theirs(text).input_ids
        assert batch.encoder_inputs[0][kept].tolist() == source
        counted = batch.weights[0].bool()
        labels = theirs(text_target=rows[next(line for line in rows if line.split() == text.split())]).input_ids
        assert batch.targets[0][counted].tolist() == labels
        assert int(batch.inputs[0, 0]) == 2
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([source]), labels=torch.tensor([labels])).loss
            logits = model(
                input_ids=batch.encoder_inputs[:, kept].long(), decoder_input_ids=batch.inputs[:, counted].long()
            ).logits
        loss = torch.nn.functional.cross_entropy(logits[0], batch.targets[0][counted].long())
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    # Neither of these has a pad token, and needs none.
    for kind, begin in (("llama3", ["<s>"]), ("gpt2", [])):
        data = data_of(folder, kind, sources=sources, sequence_length=48)
        tokenizer = load_model(folder / kind).tokenizer
        first = [tokenizer.spellings()[text] for text in begin]
        end = tokenizer.special["eos"]
        expected = {
            (*first, *tokenizer.encode(line), end, *tokenizer.encode(answer), end) for line, answer in rows.items()
        }
        for batch in batches(data, tmp_path / kind, joined, folder / kind, 5):
            tokens = [int(batch.inputs[0, 0]), *batch.targets[0].tolist()]
            last = int(batch.weights[0].nonzero()[-1]) + 1
            assert tuple(tokens[: last + 1]) in expected
        meta = json.loads((tmp_path / kind / "tokenizer" / META_FILE).read_text())
        assert meta["digest"] == tokenizer.digest


def test_prepared_tokens_are_for_models_of_one_convention(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder, "llama3", holdout=0.1)
    meta = prepare(data, tmp_path / "own", begins_from=str(folder / "llama3")).meta
    plain = prepare(data, tmp_path / "plain").meta
    assert meta is not None and plain is not None  # noqa: PT018
    documents = meta["train"]["documents"]
    assert meta["train"]["tokens"] == plain["train"]["tokens"] + documents
    assert "frame" not in plain
    tokens = np.fromfile(tmp_path / "own" / "train.bin", dtype=np.uint16)
    begin = load_model(folder / "llama3").tokenizer.special["bos"]
    assert (tokens == begin).sum() == documents

    def first(place: str, start: Path | None) -> Any:
        ready = data_of(
            folder,
            "llama3",
            sources=[{"kind": "tokens", "paths": [str(tmp_path / place / "train")]}],
            order="finite",
        )
        name = f"{place}-{'own' if start else 'plain'}"
        return next(batches(ready, tmp_path / name, CausalObjective(), start, 1))

    assert begin in first("own", folder / "llama3").inputs[0].tolist()
    assert begin not in first("plain", None).inputs[0].tolist()
    # From scratch, tokens are taken as they are.
    assert begin in first("own", None).inputs[0].tolist()
    with pytest.raises(UserError, match="begin or end with other special tokens than those of this run"):
        first("plain", folder / "llama3")


@pytest.mark.slow
def test_a_run_from_an_imported_model_keeps_its_conventions(folder: Path, tmp_path: Path) -> None:
    """Training, its evaluation and samples, and what is exported of it."""
    config = load_model(folder / "llama3").config
    (tmp_path / "long.txt").write_text("\n".join(LINES * 20))
    overrides = {
        "run.directory": tmp_path / "run", "run.threads": 1, "run.device": "cpu", "train.init_from": folder / "llama3",
        "train.steps": 1, "train.global_batch": 4, "train.micro_batch": 4, "data.lanes": 4, "data.workers": 0,
        "data.sequence_length": LENGTH, "data.holdout": 0.1, "optimizer.lr": 1e-9, "evaluation.baselines": False,
        "logging.sample_prompts": "['line 3', '']",
        "data.sources": f"[{{paths: [{tmp_path / 'long.txt'}], document: line}}]",
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    done = run("train", path, *(f"{key}={value}" for key, value in overrides.items()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    imported, trained = (load_model(place).tokenizer for place in (folder / "llama3", tmp_path / "run"))
    assert trained.conventions is not None  # type: ignore[attr-defined]
    assert trained.conventions == imported.conventions  # type: ignore[attr-defined]
    begin = trained.special["bos"]
    text = run("data", "ledger", tmp_path / "run", "--step", 1, cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    export_checkpoint(tmp_path / "run", tmp_path / "back")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs("line").input_ids == [begin, *trained.encode("line")]


def test_a_model_from_scratch_reads_the_same_after_export(tmp_path: Path) -> None:
    """It has always read the end token in front of a text: transformers' tokenizer puts it there, and import too."""
    made = write_checkpoint(tmp_path / "run", {"family": "llama", "vocab_size": 300}, {"kind": "bytes"})
    export_checkpoint(made, tmp_path / "hf")
    trained = load_model(made)
    end = trained.tokenizer.special["eos"]
    prompts = ["def f(x", "", "a b"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in prompts:
        assert theirs(text).input_ids == [end, *trained.tokenizer.encode(text)]
    import_directory(tmp_path / "hf", tmp_path / "again")
    again = load_model(tmp_path / "again")
    settings = Settings(6, repetition_penalty=1.2)
    first, second = (generate(one.model, one.tokenizer, prompts, settings) for one in (trained, again))
    assert [done.tokens for done in first] == [done.tokens for done in second]
    # Trained on pairs in one sequence, it reads the end token behind a source.
    (tmp_path / "pairs").mkdir()
    export_tokenizer(trained.tokenizer, tmp_path / "pairs", trained.model.config, source=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "pairs")
    assert theirs("a b").input_ids == [*trained.tokenizer.encode("a b"), end]
