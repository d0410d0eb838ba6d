"""Tokens that a directory adds to its vocabulary files (ChatML, phi-2, Qwen) are part of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from data_pipeline.base.errors import UserError
from llmscale.checkpoint.model import load_model
from llmscale.generate.template import Message, template_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.conventions import edit, write_model

START, END, TOOL = "<|im_start|>", "<|im_end|>", "<tool_call>"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>a"
TEXT = "def wrap(<tool_call>text"
SIZES = {"gpt2": 700, "llama2": 600}


def chatml(folder: Path, kind: str, layout: str, first: int | None = None) -> int:
    """A model's directory with three tokens behind its vocabulary; the id of the first."""
    write_model(folder, kind)
    first = SIZES[kind] if first is None else first
    ids = {START: first, END: first + 1, TOOL: first + 2}
    if layout == "added_tokens.json":
        edit(folder / layout, **ids)
        edit(folder / "special_tokens_map.json", additional_special_tokens=[START, END])
    else:
        flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        table = {str(ids[t]): {"content": t, **flags, "special": t != TOOL} for t in ids}
        edit(folder / "tokenizer_config.json", added_tokens_decoder=table)
    edit(folder / "tokenizer_config.json", eos_token=END, chat_template=TEMPLATE)
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, eos_token_id=first + 1)
    return first


@pytest.mark.parametrize("layout", ["added_tokens.json", "added_tokens_decoder"])
@pytest.mark.parametrize("kind", SIZES)
def test_added_tokens_are_read_and_written(kind: str, layout: str, tmp_path: Path) -> None:
    folder, ours = tmp_path / "hf", tmp_path / "ours"
    first = chatml(folder, kind, layout)
    import_directory(folder, ours)
    trained = load_model(ours)
    tokenizer = trained.tokenizer
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    if kind == "gpt2":
        text = theirs(TEXT).input_ids
        said = theirs.apply_chat_template([{"role": "user", "content": "hi"}])["input_ids"]
    else:
        # transformers 5 puts no space in front of what follows a special token, the sentencepiece library does.
        encode = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).encode
        text = [*encode("def wrap("), first + 2, *encode("text")]
        said = [first, *encode("hi"), first + 1, first, *encode("a")]
    assert tokenizer.encode(TEXT) == text
    assert (tokenizer.vocab_size, tokenizer.special["eos"]) == (first + 3, first + 1)
    template, _ = template_of(ours / "tokenizer", tokenizer, trained.model.config, "document")
    assert template.context([Message("user", "hi")]).tokens == said
    export_checkpoint(ours, tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert back(TEXT).input_ids == ([1] if kind == "llama2" else []) + text
    assert (back.eos_token, back.convert_tokens_to_ids(START)) == (END, first)


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer"])
def test_a_class_cuts_the_words_of_vocabulary_files(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "gpt2")
    edit(tmp_path / "hf" / "tokenizer_config.json", tokenizer_class=name)
    table = {"5": {"content": "a spelling of its own"}}  # as Gemma's runs of spaces
    edit(tmp_path / "hf" / "tokenizer_config.json", added_tokens_decoder=table)
    import_directory(tmp_path / "hf", tmp_path / "ours")
    edit(tmp_path / "hf" / "tokenizer_config.json", added_tokens_decoder={})
    tokenizer = load_model(tmp_path / "ours").tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in (" The caf\u00e9's 3.5 m\u00b2", "x 12345  \n\n  y", "I'LL (it's)\r\n", "e\u0301"):
        assert tokenizer.encode(text) == theirs(text).input_ids, text


def test_tokens_beside_a_tokenizer_json(tmp_path: Path) -> None:
    """Read where they follow the vocabulary and the model has rows for them; else a note says so."""
    folder = tmp_path / "hf"
    write_model(folder, "llama3")
    for number, expected in ((402, 402), (640, 401)):
        table = {str(number): {"content": END, "special": True}}
        edit(folder / "tokenizer_config.json", added_tokens_decoder=table, eos_token=END if number == 402 else "</s>")
        notes = import_directory(folder, tmp_path / str(number))
        tokenizer = load_model(tmp_path / str(number)).tokenizer
        assert (tokenizer.special["eos"], tokenizer.vocab_size) == (expected, 403 if number == 402 else 402)
        assert [END in note for note in notes[1:]] == ([] if number == 402 else [True])


def test_sentinels_of_t5_are_no_added_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    write_model(folder, "t5")
    first = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model")).get_piece_size()
    ids = {f"<extra_id_{99 - number}>": first + number for number in range(100)}
    edit(folder / "tokenizer_config.json", added_tokens_decoder={str(ids[t]): {"content": t} for t in ids})
    import_directory(folder, tmp_path / "ours")
    tokenizer = load_model(tmp_path / "ours").tokenizer
    assert [tokenizer.special[f"sentinel_{number}"] for number in (0, 99)] == [first + 99, first]
    assert json.loads((tmp_path / "ours" / "tokenizer" / "meta.json").read_text())["kind"] == "sentencepiece"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"added_tokens_decoder": {"705": {"content": "<x>"}}}, "adds the token '<x>' with id 705, but the next one"),
        ({"added_tokens_decoder": {"700": 5}}, "tokenizer_config.json does not say which tokens are added"),
        ({"added_tokens_decoder": ["<x>"]}, "tokenizer_config.json does not say which tokens are added"),
        ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "tokenizer_config.json does not say which tokens are"),
    ],
)
def test_added_tokens_that_are_none_are_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "gpt2")
    edit(tmp_path / "hf" / "tokenizer_config.json", **values)
    with pytest.raises(UserError) as caught:
        import_directory(tmp_path / "hf", tmp_path / "ours")
    assert says in str(caught.value)
    assert not (tmp_path / "ours").exists()
