"""A file that is no tokenizer of its kind: what it is, and what works instead."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tiktoken.load import load_tiktoken_bpe

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.hugging_face.tokenizers import import_tokenizer
from tests.data_pipeline.corpora import config
from tests.data_pipeline.tokenizer.vocabularies import bert_file, gpt2_files, t5_file, tokenizer_json


def refusal(tmp_path: Path, path: Path, **settings: Any) -> str:
    data = config({"paths": ["unused"]}, tokenizer={"path": str(path), **settings})
    with pytest.raises(UserError) as caught:
        prepare_tokenizer(data, tmp_path / "made")
    message = str(caught.value)
    assert "\n" not in message
    assert message.removeprefix("data.tokenizer.path: ").startswith(f"{path} ")
    return message


def ranked(path: Path, count: int, end: str = "\n") -> Path:
    """A vocabulary in tiktoken's own format, as Llama 3's tokenizer.model and Qwen's qwen.tiktoken are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = [bytes([byte]) for byte in range(256)] + [b"the %d" % number for number in range(count - 256)]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_bytes((end.join(lines) + end).encode())
    assert len(load_tiktoken_bpe(str(path))) == count
    return path


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken"])
@pytest.mark.parametrize("kind", ["sentencepiece", "huggingface", "wordpiece"])
def test_tiktoken_files_are_told_and_what_replaces_them_works(name: str, kind: str, tmp_path: Path) -> None:
    path = ranked(tmp_path / "original" / name, 1300)
    said = refusal(tmp_path, path, kind=kind)
    assert "is a tiktoken vocabulary of 1,300 tokens" in said
    assert "the model's tokenizer.json" in said
    gpt2 = gpt2_files(tmp_path / "gpt2")
    backend = tokenizers.ByteLevelBPETokenizer(str(gpt2), str(gpt2.with_name("merges.txt")))._tokenizer
    tokenizer_json(tmp_path / "tokenizer.json", backend, {"<|endoftext|>": True})
    said = refusal(tmp_path, path, kind=kind)
    found = re.search(r"give (\S+) \(data.tokenizer.kind: (\w+)", said)
    assert found is not None
    data = config({"paths": ["unused"]}, tokenizer={"path": found[1], "kind": found[2]})
    assert prepare_tokenizer(data, tmp_path / "made").encode("the text") == backend.encode("the text").ids


def test_import_tells_what_a_folder_has(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "qwen.tiktoken"):
        folder = ranked(tmp_path / name / name, 300).parent
        with pytest.raises(UserError, match=rf"{folder / name} is a tiktoken vocabulary of 300 tokens"):
            import_tokenizer(folder, {}, tmp_path / "made", tmp_path / "made", None)
    folder = tmp_path / "mistral"
    folder.mkdir()
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)
    ]
    (folder / "tekken.json").write_text(json.dumps({"config": {"pattern": "x"}, "vocab": vocabulary}))
    with pytest.raises(UserError, match=r"tekken.json is a tekken.json of mistral-common, of 256 tokens"):
        import_tokenizer(folder, {}, tmp_path / "made", tmp_path / "made", None)


def test_the_kind_that_a_file_is_of_works(tmp_path: Path) -> None:
    """The kind that a message names reads the file."""
    gpt2 = gpt2_files(tmp_path / "gpt2")
    backend = tokenizers.ByteLevelBPETokenizer(str(gpt2), str(gpt2.with_name("merges.txt")))._tokenizer
    files = {
        "sentencepiece": t5_file(tmp_path / "t5"),
        "gpt2": gpt2,
        "wordpiece": bert_file(tmp_path / "bert"),
        "huggingface": tokenizer_json(tmp_path / "a.json", backend, {"</s>": True}),
    }
    for right, path in files.items():
        for wrong in files:
            if wrong != right:
                said = refusal(tmp_path, path, kind=wrong, merges=str(gpt2.with_name("merges.txt")))
                assert f"set data.tokenizer.kind to {right}" in said, (right, wrong)
        made = prepare_tokenizer(
            config({"paths": ["-"]}, tokenizer={"path": str(path), "kind": right}), tmp_path / f"as {right}"
        )
        assert made.kind == right


def test_pointers_of_git_lfs(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 499723\n")
    for kind in ("sentencepiece", "huggingface", "wordpiece"):
        assert "run `git lfs pull`" in refusal(tmp_path, path, kind=kind)
