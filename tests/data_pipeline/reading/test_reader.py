"""Contexts and answers as token ids: where an answer begins, and which bytes its tokens stand for."""

import itertools

import numpy as np
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.reading.reader import Reader
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.bytes_tokenizer import BytesTokenizer
from data_pipeline.tokenizer.conventions import Conventions
from data_pipeline.tokenizer.hugging_face import GPT2Tokenizer, WordPieceTokenizer
from data_pipeline.tokenizer.sentence_piece import SentencePieceTokenizer
from tests.data_pipeline.tokenizer.vocabularies import bert_file, gpt2_files, t5_file

TEXTS = ["Question: what is it?", "今天天气很好，我们去公园吧", "déjà  vu — “quoted” 😀\n\nend ", " a", "ﬁne ①", "x"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredTokenizer]:
    folder = tmp_path_factory.mktemp("vocabularies")
    gpt2 = gpt2_files(folder / "gpt2")
    return {
        "bytes": BytesTokenizer(),
        "gpt2": GPT2Tokenizer(gpt2.read_bytes(), gpt2.with_name("merges.txt").read_bytes()),
        "bert": WordPieceTokenizer(bert_file(folder / "bert").read_bytes(), lower_case=True),
        "t5": SentencePieceTokenizer(t5_file(folder / "t5").read_bytes()),
    }


KINDS = ["bytes", "gpt2", "bert", "t5"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_spans_cover_the_text(kind: str, text: str, tokenizers: dict[str, StoredTokenizer]) -> None:
    tokenizer, data = tokenizers[kind], text.encode()
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids.tolist() == tokenizer.encode(text)
    assert spans.shape == (len(ids), 2)
    assert (spans[:, 0] <= spans[:, 1]).all()
    assert (np.diff(spans[:, 1]) >= 0).all()
    covered = set()
    for start, end in spans.tolist():
        covered |= set(range(start, end))
    # What no token stands for is white space that the tokenizer drops.
    assert all(data[place : place + 1].isspace() for place in set(range(len(data))) - covered)
    if kind in ("bytes", "gpt2"):
        assert b"".join(data[start:end] for start, end in spans.tolist()) == data


def test_a_token_on_both_sides_belongs_to_the_answer(tokenizers: dict[str, StoredTokenizer]) -> None:
    tokenizer = tokenizers["gpt2"]
    reader = Reader(tokenizer, "decoder")
    eos = tokenizer.special["eos"]
    # A context that ends with a space, which the vocabulary writes in front of the next word.
    read = reader.answer("return ", "self")
    whole = tokenizer.encode("return self")
    assert [*read.before, *read.tokens] == [eos, *whole]
    assert read.before == (eos, *tokenizer.encode("return"))
    assert read.spans[0] == (-1, 4)
    # The other way round nothing is torn.
    apart = reader.answer("return", " self")
    assert (apart.before, apart.tokens) == (read.before, read.tokens)
    assert apart.spans[0] == (0, 5)
    # The answer's first bytes end a character that a token of the context began.
    emoji = "😀"
    halves = reader.answer("so ", emoji)
    assert b"so " + emoji.encode() == tokenizer.decode([*halves.before, *halves.tokens]).encode()
    assert halves.spans[-1][1] == len(emoji.encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("context", "answer"), [("What is it?", " a book"), ("你好，", "世界"), ("", "a b"), ("x\n", "y")]
)
def test_context_and_answer_are_one_text(
    kind: str, context: str, answer: str, tokenizers: dict[str, StoredTokenizer]
) -> None:
    tokenizer = tokenizers[kind]
    architecture = "encoder" if kind == "bert" else "decoder"
    read = Reader(tokenizer, architecture).answer(context, answer)  # type: ignore[arg-type]
    assert [*read.before[read.begin :], *read.tokens] == tokenizer.encode(context + answer)
    assert read.before[: read.begin]
    size = len(answer.encode())
    assert all(end > 0 and end <= size for _, end in read.spans) or not context
    if kind == "bert":
        assert (read.before[0], read.after) == (tokenizer.special["cls"], (tokenizer.special["sep"],))


def test_special_tokens_stand_there_once(tokenizers: dict[str, StoredTokenizer]) -> None:
    tokenizer = tokenizers["gpt2"]
    eos = tokenizer.special["eos"]
    try:
        tokenizer.conventions = Conventions(begin=(7, 8))
        read = Reader(tokenizer, "decoder").answer("what", " is")
        assert read.before[:2] == (7, 8)
        assert read.begin == 2
        tokenizer.conventions = Conventions(begin=())
        # A model that reads nothing first still needs a token that the first one follows.
        assert Reader(tokenizer, "decoder").answer("", "what").before == (eos,)
        assert Reader(tokenizer, "decoder").answer("what", " is").before == tuple(tokenizer.encode("what"))
    finally:
        tokenizer.conventions = None


def test_sources_are_read_apart(tokenizers: dict[str, StoredTokenizer]) -> None:
    tokenizer = tokenizers["t5"]
    read = Reader(tokenizer, "encoder_decoder").answer("translate this", "that")
    assert read.source == (*tokenizer.encode("translate this"), tokenizer.special["eos"])
    assert read.before == (tokenizer.special["pad"],)
    assert list(read.tokens) == tokenizer.encode("that")
    pairs = Reader(tokenizer, "decoder", "source").answer("translate this", "that")
    assert pairs.before == read.source
    assert pairs.tokens == read.tokens


def test_what_cannot_be_read_is_said(tokenizers: dict[str, StoredTokenizer]) -> None:
    with pytest.raises(UserError, match="becomes no token"):
        Reader(tokenizers["bert"], "encoder").answer("a", "  ")
    with pytest.raises(UserError, match="UTF-8"):
        Reader(tokenizers["gpt2"], "decoder").answer("a", "\udcff")
    with pytest.raises(UserError, match="becomes no token"):
        Reader(tokenizers["gpt2"], "decoder").answer("a", "")


def test_words_of_an_answer(tokenizers: dict[str, StoredTokenizer]) -> None:
    reader = Reader(tokenizers["bert"], "encoder")
    read = reader.answer("the", "random library of wrappers")
    words = reader.words(read).tolist()
    texts = [tokenizers["bert"].token_text(token) for token in read.tokens]
    assert words[0] == 0
    assert [b - a for a, b in itertools.pairwise(words)] == [0 if text.startswith("##") else 1 for text in texts[1:]]
