"""Files and settings that no tokenizer can be made of: one sentence that names them, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.base.errors import UserError
from data_pipeline.config import TokenizerConfig
from data_pipeline.tokenizer import load_tokenizer, prepare_tokenizer
from tests.data_pipeline.corpora import config, texts, write_files
from tests.data_pipeline.tokenizer.vocabularies import bert_file, gpt2_files, t5_file, tokenizer_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


def refusal(tmp_path: Path, roles: tuple[str, ...] = (), **tokenizer: Any) -> str:
    """What preparing the tokenizer complains of: one sentence."""
    with pytest.raises(UserError) as caught:
        prepare_tokenizer(config({"paths": ["unused"]}, tokenizer=tokenizer), tmp_path / "new", roles=roles)
    message = str(caught.value)
    assert "\n" not in message
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new-*"))
    return message


NO_TOKENIZER = {
    "sentencepiece": [b"", b"not a model", b"\x0a\x02ab\x00\xff", b'{"model": 1}'],
    "huggingface": [
        b"",
        b"[]",
        b"{}",
        b'{"model": {}}',
        b'{"model": {"type": "BPE"}}',
        b'{"model": {"type": "Nonsense", "vocab": {}}}',
        b'{"a": 0, "b": 1}',
        b'{"model": ',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}}',
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
    ],
    "gpt2": [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"a": "b"}',
        b'{"a": -1}',
        b'{"a": 1.5}',
        b'{"a": true}',
        b'{"a": 99999999999}',
    ],
    "wordpiece": [b"", b"\n", b"\xff\xfe", b"just\nwords\n"],
}


@pytest.mark.parametrize(("kind", "contents"), [(kind, data) for kind, all_ in NO_TOKENIZER.items() for data in all_])
def test_files_that_are_no_tokenizer(tmp_path: Path, kind: str, contents: bytes) -> None:
    path = tmp_path / "given"
    path.write_bytes(contents)
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\n")
    assert str(path) in refusal(tmp_path, kind=kind, path=str(path))


NO_FILE = "it is no regular file but a pipe, a device or a socket"


@pytest.mark.parametrize("kind", NO_TOKENIZER)
def test_pipes_and_devices_are_refused_unread(tmp_path: Path, kind: str) -> None:
    pipe, link, words = (tmp_path / name for name in ("pipe", "link", "vocab.json"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    words.write_text("{}")
    for path in (Path("/dev/null"), pipe, link, Path("/dev/zero")):
        said = f"data.tokenizer.path: cannot read {path}: {NO_FILE}; name a readable file"
        assert refusal(tmp_path, kind=kind, path=str(path), merges=str(words)) == said
    said = f"data.tokenizer.merges: cannot read {pipe}: {NO_FILE}; name a readable file"
    assert refusal(tmp_path, kind="gpt2", path=str(words), merges=str(pipe)) == said


def test_every_kind_refuses_the_files_of_the_others(folder: Path, tmp_path: Path) -> None:
    gpt2 = gpt2_files(folder / "gpt2")
    merges = str(gpt2.with_name("merges.txt"))
    given_files = {
        "sentencepiece": t5_file(folder / "t5"),
        "gpt2": gpt2,
        "wordpiece": bert_file(folder / "bert"),
        "huggingface": tokenizer_json(folder / "a.json", tokenizers.ByteLevelBPETokenizer()._tokenizer),
    }
    for kind in given_files:
        for other, path in given_files.items():
            if other != kind:
                assert str(path) in refusal(tmp_path, kind=kind, path=str(path), merges=merges)


def test_vocabularies_with_mistakes(folder: Path, tmp_path: Path) -> None:
    vocabulary = json.loads(gpt2_files(folder / "gpt2").read_text())
    merges = (folder / "gpt2" / "merges.txt").read_text()
    lines = bert_file(folder / "bert").read_text().splitlines()
    path, second = tmp_path / "vocab", tmp_path / "merges.txt"

    def gpt2(entries: dict[str, int] | str, pairs: str = merges) -> str:
        path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        second.write_text(pairs)
        return refusal(tmp_path, kind="gpt2", path=str(path))

    def bert(tokens: list[str]) -> str:
        path.write_text("\n".join(tokens))
        return refusal(tmp_path, kind="wordpiece", path=str(path))

    text = json.dumps(vocabulary)
    assert "has 'a' twice" in gpt2(text[:-1] + ', "a": 9000}')
    assert "has token id 5 twice, for '%' and 'new'" in gpt2({**vocabulary, "new": 5})
    without = {token: number for token, number in vocabulary.items() if token != "<|endoftext|>"}
    assert "no token known to end a text" in gpt2(without)
    assert "data.tokenizer.special.eos" in gpt2(without)
    bare = {token: number for token, number in vocabulary.items() if token != "Ġ"}
    assert "line 2 of the merges of" in gpt2(bare)
    assert "'Ġ', which is not in the vocabulary" in gpt2(bare)
    assert "drops characters" in gpt2(bare, "#version: 0.2\n")
    assert "line 3 of the merges" in gpt2(vocabulary, "#version: 0.2\nĠ t\nonly\n")
    assert "'a b c', not two tokens" in gpt2(vocabulary, "a b c\n")
    assert f"has {lines[9]!r} twice, in lines 10 and {len(lines) + 1}" in bert([*lines, lines[9]])
    assert "has no [UNK]" in bert([line for line in lines if line != "[UNK]"])
    assert "no token known to end a text" in bert([line for line in lines if line != "[SEP]"])


def test_paths(folder: Path, tmp_path: Path) -> None:
    vocabulary = gpt2_files(folder / "gpt2")
    assert f"{folder} is a folder; name the file in it, such as {folder}/tokenizer.json" in refusal(
        tmp_path, kind="huggingface", path=str(folder)
    )
    missing = tmp_path / "missing"
    for kind in NO_TOKENIZER:
        message = refusal(tmp_path, kind=kind, path=str(missing))
        assert f"data.tokenizer.path: cannot read {missing}: No such file" in message
    (tmp_path / "alone.json").write_bytes(vocabulary.read_bytes())
    alone = {"kind": "gpt2", "path": str(tmp_path / "alone.json")}
    assert "data.tokenizer.merges: there is no merges.txt or vocab.bpe beside" in refusal(tmp_path, **alone)
    assert f"data.tokenizer.merges: cannot read {missing}" in refusal(tmp_path, **alone, merges=str(missing))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    message = refusal(tmp_path, **alone, merges=str(vocabulary.with_name("merges.txt")))
    assert f"{tmp_path}/tokenizer_config.json is not a JSON object" in message


def test_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[UNK]\n")
    path.chmod(0)

    def attempt() -> None:
        message = refusal(tmp_path, kind="wordpiece", path=str(path))
        assert f"data.tokenizer.path: cannot read {path}: Permission denied; " in message

    _as_nobody(tmp_path, attempt)


def _as_nobody(folder: Path, function: Callable[[], None]) -> None:
    """Call it in a child that may read only what everybody may."""
    if os.geteuid() != 0:
        return function()
    for parent in [folder, *folder.parents]:
        if parent.stat().st_uid == 0 and parent.stat().st_mode & 0o055 != 0o055 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_roles(folder: Path, tmp_path: Path) -> None:
    bert = {"kind": "wordpiece", "path": str(bert_file(folder / "bert"))}
    message = refusal(tmp_path, **bert, special={"eos": "<none>"})
    assert "data.tokenizer.special.eos: " in message
    assert "has no token '<none>' among its" in message
    newline = tokenizer_json(tmp_path / "words.json", _words(["[UNK]", "a", ".", "[E]"], "[UNK]"))
    words = {"kind": "huggingface", "path": str(newline)}
    assert "the eos token '.' is also what ordinary text becomes" in refusal(tmp_path, **words, special={"eos": "."})
    made = prepare_tokenizer(
        config({"paths": ["unused"]}, tokenizer={**words, "special": {"eos": "[E]"}}), tmp_path / "made"
    )
    # Word-level models look up whole words, so the library makes the special token of text.
    assert made.special == {"unk": 0, "eos": 3}
    assert made.encode("a [E] a") == [1, 0, 0, 0, 1]
    for tokenizer, message in (
        ({"special": {"end": "x"}}, "'end' is no role"),
        ({"special": {"sentinel_01": "x"}}, "'sentinel_01' is no role"),
        ({"kind": "gpt2"}, "kind gpt2 needs a path"),
        ({"kind": "bytes", "path": "x"}, "kind bytes has no file"),
    ):
        with pytest.raises(ValidationError, match=message):
            TokenizerConfig.model_validate(tokenizer)


def _words(vocabulary: list[str], unknown: str | None) -> tokenizers.Tokenizer:
    entries = {word: number for number, word in enumerate(vocabulary)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(entries, **({"unk_token": unknown} if unknown else {})))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def test_models_that_lose_text(tmp_path: Path) -> None:
    without = tokenizer_json(tmp_path / "words.json", _words(["a", "</s>"], None), {"</s>": True})
    assert "cannot encode every text" in refusal(tmp_path, kind="huggingface", path=str(without))
    letters = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    dropping = tokenizer_json(tmp_path / "letters.json", letters, {"</s>": True})
    assert "drops characters" in refusal(tmp_path, kind="huggingface", path=str(dropping))


def test_a_run_s_tokenizer_that_is_not_the_config_s(folder: Path, tmp_path: Path) -> None:
    def prepare(name: str, roles: tuple[str, ...] = (), **tokenizer: Any) -> None:
        prepare_tokenizer(config({"paths": ["unused"]}, tokenizer=tokenizer), tmp_path / name, roles=roles)

    bert = {"kind": "wordpiece", "path": str(bert_file(folder / "bert"))}
    prepare("bert", **bert)
    for message, roles, settings_ in (
        ("holds a wordpiece tokenizer, but data.tokenizer.kind is gpt2", (), _gpt2(folder)),
        ("data.tokenizer.lower_case is False, but .* has True", (), {**bert, "lower_case": False}),
        (r"data.tokenizer.special.eos is '\[PAD\]', but .* has '\[SEP\]'", (), {**bert, "special": {"eos": "[PAD]"}}),
        ("has no token for sentinel_0, which this objective needs", ("mask", "sentinel_0"), bert),
    ):
        with pytest.raises(UserError, match=message):
            prepare("bert", roles, **settings_)
    data = config(write_files(tmp_path / "data", texts(60)), tokenizer={"train": {"vocab_size": 400}})
    prepare_tokenizer(data, tmp_path / "trained")
    other = config(write_files(tmp_path / "data", texts(60)), tokenizer={"train": {"vocab_size": 450}})
    with pytest.raises(UserError, match=r"data.tokenizer.train.vocab_size is 450, but .* has 400"):
        prepare_tokenizer(other, tmp_path / "trained")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("not to be lost")
    with pytest.raises(UserError, match="full exists and is no tokenizer"):
        prepare("full", **bert)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "not to be lost"


def _gpt2(folder: Path) -> dict[str, str]:
    return {"kind": "gpt2", "path": str(gpt2_files(folder / "gpt2"))}


def test_damaged_copies(folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        data = config({"paths": ["unused"]}, tokenizer=_gpt2(folder))
        prepare_tokenizer(data, tmp_path / name, roles=("mask",))
        return tmp_path / name

    changed = copy("changed") / "merges.txt"
    changed.write_text("".join(changed.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"has digest \w{12} but was written as \w{12}; restore it"):
        load_tokenizer(tmp_path / "changed")
    (copy("gone") / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*vocab.json: No such file"):
        load_tokenizer(tmp_path / "gone")
    meta = copy("meta") / "meta.json"
    whole = json.loads(meta.read_text())
    damaged: list[str] = [
        "",
        "[]",
        "{",
        "{}",
        json.dumps({**whole, "kind": "none"}),
        json.dumps({**whole, "special": 3}),
    ]
    damaged += [json.dumps({**whole, "special": {"eos": 10**9}}), json.dumps({**whole, "appended": [1]})]
    for text in damaged:
        meta.write_text(text)
        with pytest.raises(UserError, match=r"damaged|digest"):
            load_tokenizer(tmp_path / "meta")


def test_a_prefix_that_merges_lack_is_refused(tmp_path: Path) -> None:
    """The library would abort the process over the parts of characters."""
    path = tmp_path / "tokenizer.json"
    backend = tokenizers.ByteLevelBPETokenizer(str(gpt2_files(tmp_path)), str(tmp_path / "merges.txt"))
    tokenizer_json(path, backend._tokenizer, {"<|endoftext|>": True})
    layout = json.loads(path.read_text())
    layout["model"]["continuing_subword_prefix"] = "x"
    path.write_text(json.dumps(layout))
    with pytest.raises(UserError, match=r"continuing_subword_prefix is 'x', but the merge .* does not begin with it"):
        prepare_tokenizer(
            config({"paths": ["unused"]}, tokenizer={"kind": "huggingface", "path": str(path)}), tmp_path / "made"
        )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_broken_tokenizer_json_is_refused_or_works(folder: Path, data: st.DataObject) -> None:
    """Any part of a file replaced by something else: a sentence, or a tokenizer that encodes."""
    path = folder / "fuzz" / "tokenizer.json"
    if not path.exists():
        backend = tokenizers.ByteLevelBPETokenizer(
            str(gpt2_files(folder / "gpt2")), str(folder / "gpt2" / "merges.txt")
        )
        tokenizer_json(path, backend._tokenizer, {"<|endoftext|>": True})
    layout = json.loads(path.read_text())
    node, keys = layout, [data.draw(st.sampled_from(sorted(layout)))]
    while isinstance(node[keys[-1]], dict) and data.draw(st.booleans()):
        node = node[keys[-1]]
        keys.append(data.draw(st.sampled_from(sorted(node))))
    values = [None, True, -1, 10**12, "", "x", [], [[]], {}, {"type": "x"}, [1], ["a", "b"], {"a": 1}]
    node[keys[-1]] = data.draw(st.sampled_from(values))
    broken = path.with_name("broken.json")
    broken.write_text(json.dumps(layout))
    target = path.parent / f"made {len(list(path.parent.iterdir()))}"
    try:
        made = prepare_tokenizer(
            config({"paths": ["unused"]}, tokenizer={"kind": "huggingface", "path": str(broken)}), target
        )
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert made.encode("some text")
