"""U+2581, which SentencePiece writes for a space, in texts for models that put a space before each text (Llama 2's,
Mistral's): nothing is lost, and all else is split as the sentencepiece library splits it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from data_pipeline.tokenizer import Tokenizer, load_tokenizer, prepare_tokenizer
from tests.data_pipeline.corpora import config
from tests.data_pipeline.tokenizer.vocabularies import t5_file

MARK = "\u2581"
LLAMA: dict[str, Any] = {
    "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    "bos_id": 1, "eos_id": 2, "unk_id": 0, "pad_id": -1, "vocab_size": 800,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram", "user_defined_symbols": ["<ok>"]},
    "without prefix": {"model_type": "bpe", "add_dummy_prefix": False},
}
Pair = tuple[Tokenizer, sentencepiece.SentencePieceProcessor]


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    path = t5_file(folder, **{**LLAMA, **MODELS[request.param]})
    data = config({"paths": ["unused"]}, tokenizer={"path": str(path)})
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return prepare_tokenizer(data, folder / "tokenizer"), processor


@settings(max_examples=80, deadline=None)
@given(text=st.text(alphabet=f"{MARK}{MARK} \n\t\rab<ok>\x00\u00a0\u3000é用\ufdd0\ufdd1\ue000") | st.text())
def test_any_text_comes_back(pair: Pair, text: str) -> None:
    tokenizer, processor = pair
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    if MARK not in text:
        assert ids == processor.encode(text)


@pytest.mark.parametrize("text", ["a_b", "_", "_b", " _ b", "the__random _\n_", "_\ufdd0\ufdd1"])
def test_what_stands_around_it_is_split_as_the_library_does(pair: Pair, text: str) -> None:
    """Behind the mark the text goes on, so there the library is told to put no space in front."""
    tokenizer, processor = pair
    text = text.replace("_", MARK)
    layout = sentencepiece_model_pb2.ModelProto.FromString(processor.serialized_model_proto())
    layout.normalizer_spec.add_dummy_prefix = False
    inner = sentencepiece.SentencePieceProcessor(model_proto=layout.SerializeToString())
    mark = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in MARK.encode()]
    first, *rest = text.split(MARK)
    prefix = " " if processor.id_to_piece(tokenizer.encode("a")[0]).startswith(MARK) else ""
    expected = inner.encode(prefix + first)
    for part in rest:
        expected += mark + inner.encode(part)
    assert tokenizer.encode(text) == expected


def test_a_tokenizer_that_was_saved_before_goes_on_as_it_did(tmp_path: Path) -> None:
    """Runs that exist see the same tokens: a space in front of what is behind each mark."""
    path = t5_file(tmp_path, **{**LLAMA, **MODELS["bpe"]})
    data = config({"paths": ["unused"]}, tokenizer={"path": str(path)})
    new = prepare_tokenizer(data, tmp_path / "tokenizer")
    meta = tmp_path / "tokenizer" / "meta.json"
    layout = json.loads(meta.read_text())
    del layout["rules"]
    meta.write_text(json.dumps(layout))
    old = load_tokenizer(tmp_path / "tokenizer")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    mark = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in MARK.encode()]
    assert old.encode(f"a{MARK}b") == [*processor.encode("a"), *mark, *processor.encode("b")]
    assert old.encode(f"a{MARK}b") != new.encode(f"a{MARK}b")
    assert old.digest == new.digest
