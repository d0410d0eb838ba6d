"""`llmscale eval` on files of every kind for models of every objective, against transformers' loss on the records."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_pipeline.config import DataConfig
from data_pipeline.document import Document
from data_pipeline.finite.cache import materialise
from data_pipeline.objectives.packing import Stored
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.model import load_model
from llmscale.checkpoint.whole import write_whole
from llmscale.config import identity, parse_config
from llmscale.hugging_face.files import new_folder
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.references import BYTES, reference, save
from tests.hugging_face.test_bad_directories import command

PAD, EOS, FIRST = 0, 2, 3
"""Of the bytes tokenizer."""
SOURCES, TARGETS = 14, 10
"""Tokens that are kept of the texts of a pair."""
SHORT = [("What is it", "a cat"), ("Où ?", "là-bas"), ('a, "b"', "c\td"), ("x", "two\nlines")]
LONG = [*SHORT, ("a source text that is cut", "and a target that is cut too"), ("你好，世界", "héllo")]
PAIRS = {"kind": "jsonl", "paths": ["train.jsonl"], "field": "question", "target_field": "answer"}
KINDS = ("jsonl", "jsonl.gz", "csv", "tsv", "parquet", "arrow", "tokens")


def write(path: Path, kind: str, records: list[dict[str, Any]]) -> Path:
    """Records as a file of a kind, whose name ends accordingly; the file."""
    path = path.with_suffix(f".{kind}")
    if kind.startswith("jsonl"):
        data = "".join(json.dumps(row) + "\n" for row in records).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    elif kind == "tokens":
        tokenizer = load_tokenizer(path.parent / "tokenizer")
        names = list(records[0])
        made = [Document(i, 0, i, row[names[0]], row[names[-1]]) for i, row in enumerate(records)]
        materialise(made, tokenizer, path.with_suffix(""), digest="", stored=Stored(target=len(names) > 1))
        return path.with_suffix(".idx")
    else:
        table = pyarrow.Table.from_pylist(records)
        if kind == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_file(str(path), table.schema) as arrow:
                arrow.write_table(table)
    return path


def checkpoint(imported: Path, out: Path, objective: dict[str, Any], sources: list[dict[str, Any]]) -> Path:
    """An imported model as a run of another objective on other sources would have left it."""
    trained = load_model(imported)
    raw = json.loads(json.dumps(trained.config.model_dump(mode="json")))
    raw |= {"objective": objective, "data": {**raw["data"], "sources": sources, "sequence_length": SOURCES}}
    config = parse_config(raw)
    roles = config.objective.roles(SOURCES)
    data = DataConfig.model_validate(raw["data"])
    prepare_tokenizer(data, out.parent / f"{out.name}-tokenizer", roles=roles)
    files = {file.name: file.read_bytes() for file in (out.parent / f"{out.name}-tokenizer").iterdir()}
    state = RunState(samples=0, config=config.model_dump(mode="json"), identity=identity(config))
    tensors = ((name, parameter.detach()) for name, parameter in trained.model.named_parameters())
    with new_folder(out) as temporary:
        write_whole(temporary, tensors, state, files)
    return out


SEQ2SEQ = {"name": "seq2seq", "target_length": TARGETS}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pairs": ("t5", SEQ2SEQ, PAIRS),
    "gated": ("t5_v1_1", SEQ2SEQ, PAIRS),
    "joined": ("gpt2", {**SEQ2SEQ, "concatenate": True}, PAIRS),
    "causal": ("gpt2", {"name": "causal"}, {"kind": "text", "paths": ["a.txt"]}),
    "fim": ("gpt2", {"name": "causal", "fim_rate": 0.5}, {"kind": "text", "paths": ["a.txt"]}),
    "prefix": ("gpt2", {"name": "prefix"}, {"kind": "text", "paths": ["a.txt"]}),
    "denoising": ("t5", {"name": "denoising"}, {"kind": "jsonl", "paths": ["a.jsonl"], "field": "question"}),
    "masked": ("bert_masked", {"name": "masked"}, {"kind": "text", "paths": ["a.txt"]}),
    "sentences": ("bert", {"name": "masked", "next_sentence": True}, {"kind": "text", "paths": ["a.txt"]}),
}


class Trained:
    """A checkpoint and transformers' model of the same weights."""

    def __init__(self, folder: Path, name: str) -> None:
        family, objective, source = MODELS[name]
        self.theirs = reference(family).eval()
        if objective["name"] == "denoising":
            # Room for the sentinels, of which the bytes tokenizer has none of its own.
            self.theirs.resize_token_embeddings(400)
        import_directory(save(self.theirs, folder / "hf"), folder / "imported", tokenizer=BYTES)
        self.path = checkpoint(folder / "imported", folder / "run", objective, [source])
        (folder / "run-tokenizer").rename(folder / "tokenizer")
        self.folder = folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            made[name] = Trained(tmp_path_factory.mktemp("eval"), name)
        return made[name]

    return get


def figures(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert command("eval", *words, "--json") == 0
    # DeepSpeed has something to say when it is first imported.
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def ids(text: str, length: int) -> list[int]:
    return [*(byte + FIRST for byte in text.encode()[: length - 1]), EOS]


def reference_loss(theirs: nn.Module, pairs: list[tuple[str, str]]) -> tuple[float, int]:
    """Nats of all targets, one pair at a time and without padding, and how many targets there are."""
    nats, count = 0.0, 0
    for source, target in ((ids(a, SOURCES), ids(b, TARGETS)) for a, b in pairs):
        with torch.no_grad():
            if theirs.config.is_encoder_decoder:
                inputs = torch.tensor([[PAD, *target[:-1]]])
                logits = theirs(input_ids=torch.tensor([source]), decoder_input_ids=inputs).logits[0]
            else:
                logits = theirs(torch.tensor([source + target])).logits[0, len(source) - 1 : -1]
        nats += float(F.cross_entropy(logits.double(), torch.tensor(target), reduction="sum"))
        count += len(target)
    return nats, count


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("pairs", kind) for kind in KINDS), ("joined", "csv"), ("joined", "tokens"), ("gated", "jsonl")],
)
def test_pairs_have_the_loss_that_transformers_gives_them(
    trained: Any, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    model = trained(name)
    texts = SHORT if kind != "tsv" else [pair for pair in SHORT if not set('\t\n"') & set("".join(pair))]
    records = [{"question": a, "answer": b} for a, b in texts]
    path = write(model.folder / f"short of {kind}", kind, records)
    found = figures(capsys, model.path, "--data", path)
    nats, count = reference_loss(model.theirs, texts)
    size = sum(len(target.encode()) for _, target in texts)
    assert (found["tokens"], found["documents"], found["bytes"]) == (count, len(texts), size)
    assert found["loss"] == pytest.approx(nats / count, rel=2e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=2e-6)
    for batch in (1, 3) if kind == "jsonl" else ():
        again = figures(capsys, model.path, "--data", path, "--batch", batch)
        assert again["loss"] == pytest.approx(found["loss"], rel=1e-6)


@pytest.mark.parametrize("name", ["pairs", "joined"])
def test_fields_may_be_named_and_long_texts_are_cut_as_in_training(
    trained: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = trained(name)
    records = [{"in": a, "out": b, "question": "x", "answer": "y"} for a, b in LONG]
    path = write(model.folder / "long", "jsonl", records)
    found = figures(capsys, model.path, "--data", path, "--field", "in", "--target-field", "out")
    nats, count = reference_loss(model.theirs, LONG)
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(nats / count, rel=2e-6)
    # A template, and the run's own field beside it.
    found = figures(capsys, model.path, "--data", path, "--field", "{in}!")
    nats, count = reference_loss(model.theirs, [(f"{a}!", "y") for a, _ in LONG])
    assert found["loss"] == pytest.approx(nats / count, rel=2e-6)
    renamed = path.rename(path.with_suffix(".json"))
    assert figures(capsys, model.path, "--data", renamed)["documents"] == len(LONG)
    renamed = renamed.rename(path.with_suffix(".txt"))
    assert figures(capsys, model.path, "--data", renamed, "--kind", "jsonl")["documents"] == len(LONG)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("pairs", "gated", "joined")])
def test_other_objectives_read_the_same_texts_from_every_kind_of_file(
    trained: Any, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = trained(name)
    field = "question" if name == "denoising" else "text"
    texts = [f"{a} and {b}".replace("\t", " ").replace("\n", " ").replace('"', "") for a, b in LONG]
    by_kind = {}
    for kind in ("jsonl", "tsv", "parquet", "tokens"):
        path = write(model.folder / f"texts of {kind}", kind, [{field: text} for text in texts])
        options = ("--field", field) if kind in ("tsv", "parquet") else ()
        by_kind[kind] = figures(capsys, model.path, "--data", path, *options)
    for number, text in enumerate(texts):
        (model.folder / f"text {number}.txt").write_text(text)
    by_kind["text"] = figures(capsys, model.path, "--data", model.folder / "text *.txt")
    assert all(found == by_kind["jsonl"] for found in by_kind.values())
    assert by_kind["jsonl"]["documents"] == len(texts)
    assert math.isfinite(by_kind["jsonl"]["loss"])
    if name in ("causal", "fim"):
        stream = [EOS, *(token for text in texts for token in ids(text, 1 << 20))]
        nats = 0.0
        for first in range(0, len(stream) - 1, SOURCES):
            window = torch.tensor([stream[first : first + SOURCES + 1]])
            with torch.no_grad():
                logits = model.theirs(window[:, :-1]).logits[0].double()
            nats += float(F.cross_entropy(logits, window[0, 1:], reduction="sum"))
        assert by_kind["jsonl"]["loss"] == pytest.approx(nats / (len(stream) - 1), rel=2e-6)


def test_a_limit_takes_an_even_sample_of_the_files(
    trained: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = trained("pairs")
    pairs = [{"question": f"{letter} {letter}?", "answer": letter * (place + 1)} for place, letter in enumerate("abcd")]
    path = write(tmp_path / "all", "jsonl", pairs)
    whole = figures(capsys, model.path, "--data", path)
    assert figures(capsys, model.path, "--data", path, "--limit", 100) == whole
    half = figures(capsys, model.path, "--data", path, "--limit", 2)
    alone = figures(capsys, model.path, "--data", write(tmp_path / "some", "jsonl", pairs[::2]))
    assert half["tokens"] == alone["tokens"] < whole["tokens"]
    assert half["loss"] == pytest.approx(alone["loss"], rel=1e-6)


def test_a_table_is_plain_text_where_neither_the_run_nor_the_command_has_fields(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained("causal")
    path = write(model.folder / "table", "csv", [{"text": "one"}, {"text": "two"}])
    whole = path.with_suffix(".txt")
    whole.write_bytes(path.read_bytes())
    found = figures(capsys, model.path, "--data", path)
    assert found == figures(capsys, model.path, "--data", whole)
    assert found["documents"] == 1
    assert figures(capsys, model.path, "--data", path, "--kind", "csv")["documents"] == 2


def test_files_in_other_encodings_are_read_as_the_runs_own_or_as_is_said(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained("pairs")
    source = {**PAIRS, "kind": "csv", "encoding": "cp932", "delimiter": "|", "quote": "'", "escape": "\\"}
    run = checkpoint(model.folder / "imported", model.folder / "encoded", SEQ2SEQ, [source])
    # The second byte of these is a bar or a backslash.
    pairs = [("ポ|ソ", "'表'"), ("ポポ", "能\\ソ"), ("x", "ー\nソ")] * 3
    for encoding, name in (("cp932", "table.csv"), ("utf-8", "other.csv")):
        with open(model.folder / name, "w", newline="", encoding=encoding) as file:
            writer = csv.writer(file, delimiter="|", quotechar="'", escapechar="\\")
            writer.writerows([("question", "answer"), *pairs])
            # A record of three fields.
            file.write("a|b|c\n")
    nats, count = reference_loss(model.theirs, pairs)
    for options in (("table.csv",), ("other.csv", "--encoding", "utf-8")):
        assert command("eval", run, "--data", model.folder / options[0], *options[1:], "--json") == 0
        said = capsys.readouterr()
        found = json.loads(said.out.splitlines()[-1])
        assert (found["tokens"], found["dropped"]) == (count, {"malformed row": 1})
        assert found["loss"] == pytest.approx(nats / count, rel=2e-6)
        warning = f"1 bad records among 10 (10.0%; data.bad_record_warning is 1.0%): 1 malformed row ({model.folder}"
        assert warning in said.err
    assert command("eval", run, "--data", model.folder / "other.csv") == 2
    assert "other.csv is UTF-8, not cp932; set --encoding to utf-8" in capsys.readouterr().err
    # A run that says nothing of an encoding.
    (model.folder / "table.jsonl").write_bytes(
        "".join(f'{{"question": "今日は、いい天気{i}", "answer": "です"}}\n' for i in range(9)).encode("cp932")
    )
    assert command("eval", model.path, "--data", model.folder / "table.jsonl") == 2
    refused = capsys.readouterr().err
    assert "but probably cp932 (Shift JIS)" in refused
    assert "set --encoding to cp932" in refused
    found = figures(capsys, model.path, "--data", model.folder / "table.jsonl", "--encoding", "sjis")
    nats, count = reference_loss(model.theirs, [(f"今日は、いい天気{i}", "です") for i in range(9)])
    assert found["loss"] == pytest.approx(nats / count, rel=2e-6)


MISTAKES: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "text": ("pairs", "a.txt", (), "is text without fields, but a model of objective seq2seq is evaluated on pairs"),
    "other fields": ("pairs", "plain.jsonl", (), "plain.jsonl has no field 'question' but 'text'"),
    "no target": ("pairs", "plain.jsonl", ("--field", "text"), "plain.jsonl has no field 'answer' but 'text'"),
    "an odd number": ("pairs", "odd.idx", (), "odd has 3 documents, which are no pairs"),
    "a target too many": ("causal", "plain.jsonl", ("--target-field", "text"), "objective is causal, which reads no"),
    "fields of tokens": ("causal", "odd.idx", ("--field", "text"), "has kind tokens, which has no fields; leave out"),
    "fields of text": ("causal", "a.txt", ("--field", "text"), "has kind text, which has no fields; leave out --field"),
    "another kind": ("causal", "a.txt", ("--kind", "xml"), "--kind is 'xml', but must be one of arrow, conll, csv"),
    "an encoding of tokens": (
        "causal",
        "odd.idx",
        ("--encoding", "gbk"),
        "which has no encoding of its own; leave out",
    ),
    "no encoding": ("causal", "a.txt", ("--encoding", "no"), "a.txt: Python knows no text encoding 'no'; name one"),
    "a bad template": ("joined", "plain.jsonl", ("--field", "{text"), "is not a valid template"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_evaluated_is_said_in_a_sentence(
    trained: Any, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, file, options, message = MISTAKES[case]
    model = trained(name)
    write(model.folder / "plain", "jsonl", [{"text": "one"}])
    (model.folder / "a.txt").write_text("text")
    tokenizer = load_tokenizer(model.folder / "tokenizer")
    materialise([Document(i, 0, i, "text") for i in range(3)], tokenizer, model.folder / "odd", digest="")
    # What making the model has said.
    capsys.readouterr()
    assert command("eval", model.path, "--data", model.folder / file, *options) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert message in sentence


def test_a_model_whose_run_names_no_fields_needs_them_named(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """As one that was imported and not trained yet."""
    model = trained("pairs")
    path = write(model.folder / "named", "jsonl", [{"question": a, "answer": b} for a, b in SHORT])
    imported = model.folder / "imported"
    assert load_model(imported).config.objective.name == "seq2seq"
    assert command("eval", imported, "--data", path) == 2
    assert "no source of its run names fields for pairs; give --field and --target-field" in capsys.readouterr().err
    found = figures(capsys, imported, "--data", path, "--field", "question", "--target-field", "answer")
    nats, count = reference_loss(model.theirs, SHORT)
    assert found["loss"] == pytest.approx(nats / count, rel=2e-6)
