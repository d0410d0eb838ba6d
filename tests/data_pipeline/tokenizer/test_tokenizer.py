"""Tokenizers lose nothing, repeat themselves exactly, and refuse what does not fit."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import BytesTokenizer, Tokenizer, load_tokenizer, prepare_tokenizer
from data_pipeline.tokenizer.training import sample_text
from tests.data_pipeline.corpora import WRITERS, config, texts, write_files, write_jsonl

STDLIB = {"paths": ["{python_stdlib}/[a-d]*.py"]}

AWKWARD = [
    "",
    " ",
    "   lead and trail   ",
    "\n\n\t\t mixed \r\n ends \r",
    "a\u2581b \u2581\u2581 \u2581",
    "\u2585 \u2047 \ufffd \ufeff \u200d \x00 \x01 \x7f \x85 \u2028",
    "<s></s><unk><pad><0x41>",
    "def f(x):\n    if x:\n        return None\n\n\n    pass\n",
    "你好，世界。吾輩は猫である 한국어",
    "😀👨‍👩‍👧‍👦🇩🇪 é e\u0301",
    "🂡\U0010ffff",
]


@pytest.fixture(scope="module", params=["bpe", "unigram", "bytes"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    kind = "bytes" if request.param == "bytes" else "sentencepiece"
    model = "bpe" if request.param == "bytes" else request.param
    train = {"model": model, "vocab_size": 800, "max_bytes": 150_000}
    data = config(STDLIB, tokenizer={"kind": kind, "train": train})
    return prepare_tokenizer(data, tmp_path_factory.mktemp(request.param) / "tokenizer")


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet=" \n\t\u2581ab(:世"))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    assert not set(ids) & set(tokenizer.special.values())


@settings(max_examples=30, deadline=None)
@given(batch=st.lists(st.text(alphabet=" \n\u2581ab世"), max_size=6))
def test_batches_equal_single_texts(tokenizer: Tokenizer, batch: list[str]) -> None:
    encoded = tokenizer.encode_batch(batch)
    assert [ids.tolist() for ids in encoded] == [tokenizer.encode(text) for text in batch]
    assert all(ids.dtype.name == "int32" for ids in encoded)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab_size, loaded.special, loaded.digest) == (
        tokenizer.vocab_size,
        tokenizer.special,
        tokenizer.digest,
    )
    assert loaded.encode(AWKWARD[7]) == tokenizer.encode(AWKWARD[7])
    assert {"eos", "bos", "pad"} <= set(loaded.special)
    assert loaded.decode([loaded.special["eos"], *loaded.encode("x")]) == "x"


def small(folder: Path, **train: object) -> DataConfig:
    settings = {"vocab_size": 400, **train}
    return config(write_files(folder, texts(60)), tokenizer={"train": settings}, holdout=0.3)


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_training_twice_gives_the_same_model(tmp_path: Path, model: str) -> None:
    data = small(tmp_path / "data", model=model)
    digests = {prepare_tokenizer(data, tmp_path / name).digest for name in ("a", "b")}
    assert len(digests) == 1


def test_indentation_and_newlines_share_pieces(tmp_path: Path) -> None:
    data = config(STDLIB, tokenizer={"train": {"vocab_size": 2000, "max_bytes": 400_000}})
    made = prepare_tokenizer(data, tmp_path / "tokenizer")
    assert len(made.encode("\n        ")) == 1
    assert len(made.encode("\n\n    ")) == 1
    assert len(made.encode("):\n        return")) <= 4


def test_a_finished_tokenizer_is_loaded_not_made_again(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    said: list[str] = []
    made = prepare_tokenizer(data, tmp_path / "tokenizer", said.append)
    assert len(said) == 1
    assert prepare_tokenizer(data, tmp_path / "tokenizer", said.append).digest == made.digest
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_several_at_once_agree(tmp_path: Path) -> None:
    data = config(write_files(tmp_path / "data", texts(9)), tokenizer={"kind": "bytes"})
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(prepare_tokenizer(data, tmp_path / "tokenizer").digest))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BytesTokenizer().digest] * 8


def test_a_given_model_is_copied_and_checked(tmp_path: Path) -> None:
    made = prepare_tokenizer(small(tmp_path / "data"), tmp_path / "made")
    path = tmp_path / "made" / "tokenizer.model"
    data = config(write_files(tmp_path / "data", texts(60)), tokenizer={"path": str(path)})
    assert prepare_tokenizer(data, tmp_path / "copy").digest == made.digest
    other = prepare_tokenizer(small(tmp_path / "data", vocab_size=450), tmp_path / "other")
    assert other.digest != made.digest
    new, old = (hashlib.sha256((tmp_path / name / "tokenizer.model").read_bytes()) for name in ("made", "other"))
    message = rf"tokenizer.model \({new.hexdigest()[:12]}\) is not that of .*other \({old.hexdigest()[:12]}\)"
    with pytest.raises(UserError, match=message):
        prepare_tokenizer(data, tmp_path / "other")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = small(tmp_path / "data")
    with pytest.raises(UserError, match=r"holds no tokenizer"):
        load_tokenizer(tmp_path / "nothing")
    prepare_tokenizer(data, tmp_path / "made")
    bytes_data = data.model_copy(update={"tokenizer": data.tokenizer.model_copy(update={"kind": "bytes"})})
    with pytest.raises(UserError, match=r"holds a sentencepiece tokenizer, but data.tokenizer.kind is bytes"):
        prepare_tokenizer(bytes_data, tmp_path / "made")
    model = tmp_path / "made" / "tokenizer.model"
    model.write_bytes(model.read_bytes() + b"\x0a\x00")
    with pytest.raises(UserError, match=r"tokenizer.model has digest|tokenizer.model is not a SentencePiece model"):
        load_tokenizer(tmp_path / "made")
    for path, message in (("missing.model", "No such file"), ("data/part0/000.txt", "is not a SentencePiece model")):
        given_path = config(*[s.model_dump() for s in data.sources], tokenizer={"path": str(tmp_path / path)})
        with pytest.raises(UserError, match=message):
            prepare_tokenizer(given_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_vocabulary_too_small_for_the_characters_says_so(tmp_path: Path) -> None:
    text = "".join(chr(code) for code in range(0x4E00, 0x5200))
    data = config(write_files(tmp_path / "data", [text * 2]), tokenizer={"train": {"vocab_size": 400}})
    with pytest.raises(UserError, match=r"cannot train 400 pieces on 2048 characters .*character_coverage") as caught:
        prepare_tokenizer(data, tmp_path / "tokenizer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_the_training_sample_is_even_and_never_held_out(tmp_path: Path, kind: str) -> None:
    documents = [text.replace("\n", " ") for text in texts(1500, longest=100)]
    source = WRITERS[kind](tmp_path / "data", documents)
    held = Corpus.training(config(source, holdout=0.3))
    limit = 60_000
    pieces = list(sample_text(held, limit))
    sampled = "".join(pieces)
    assert limit * 0.75 <= len(sampled.encode()) <= limit
    starts = {text.split(" ")[0] + " " for text in documents}
    seen = {start for start in starts if any(piece.startswith(start) for piece in pieces)}
    out = {document.text.split(" ")[0] + " " for document in held.documents(held_out=True)}
    assert seen and not seen & out  # noqa: PT018
    if kind in ("lines", "jsonl", "parquet"):
        positions = sorted(int(start.split(".")[1]) for start in seen)
        assert positions[0] < 250
        assert positions[-1] > 1250
    everything = "".join(sample_text(Corpus.training(config(source)), 10**9))
    assert hashlib.sha256("".join(sorted(everything)).encode()).digest() == (
        hashlib.sha256("".join(sorted("".join(documents))).encode()).digest()
    )


def test_jsonl_trains_too(tmp_path: Path) -> None:
    data = config(write_jsonl(tmp_path / "a", texts(300)), tokenizer={"train": {"vocab_size": 350}})
    assert prepare_tokenizer(data, tmp_path / "tokenizer").vocab_size <= 350
