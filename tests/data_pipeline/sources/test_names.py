"""Names with characters that have a meaning in patterns stand for themselves, for every kind of source."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_pipeline.base.errors import UserError
from data_pipeline.config import SourceConfig, TokenizerConfig
from data_pipeline.finite.heldout import build_evaluation_set
from data_pipeline.finite.prefixes import prepared_prefixes
from data_pipeline.sources.corpus import Corpus
from data_pipeline.tokenizer import BytesTokenizer, load_tokenizer, prepare_tokenizer
from tests.data_pipeline import source_writers
from tests.data_pipeline.corpora import config, texts

ODD = "[2023] d?mp*!"
TEXTS = texts(30, longest=8)


def read(source: dict[str, Any]) -> list[str]:
    return [document.text for document in Corpus([SourceConfig.model_validate(source)]).documents()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside each odd folder one that it would match as a pattern, with another text."""
    folder = tmp_path_factory.mktemp("names")
    for name in (ODD, "plain"):
        for kind in source_writers.WRITERS:
            source_writers.write(kind, folder / name / kind, TEXTS)
    (folder / "2 damp!").mkdir()
    (folder / "2 damp!" / "a.txt").write_text("of another folder")
    return folder


def within(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """The source that a writer gives, in a folder of another name."""
    source = source_writers.write(kind, folder / "scratch" / kind, TEXTS)
    return {**source, "paths": [path.replace("scratch", name) for path in source["paths"]]}


@pytest.mark.parametrize("kind", [kind for kind in source_writers.WRITERS if kind != "tokens"])
def test_patterns_below_a_folder_of_any_name_match_what_they_match_elsewhere(folder: Path, kind: str) -> None:
    odd, plain = within(folder, ODD, kind), within(folder, "plain", kind)
    assert read(odd) == read(plain) != []
    # File names, by which documents are identified, do not depend on the folder either.
    files = [Corpus([SourceConfig.model_validate(source)]).files for source in (odd, plain)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]


def test_prefixes_of_tokens_may_have_any_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / ODD / "tokens")
    for ending in ("bin", "idx"):
        os.link(f"000.{ending}", f"[0]*.{ending}")
        os.link(f"001.{ending}", f"0a.{ending}")
    place = f"../../{ODD}/tokens"
    for pattern, expected in {
        f"{place}/[0]*": [f"{place}/[0]*"],
        f"{place}/[0]*.idx": [f"{place}/[0]*"],
        f"{place}/00[12]": [f"{place}/001", f"{place}/002"],
        "[0]*": ["[0]*"],
        "[0]?": ["0a"],
    }.items():
        assert prepared_prefixes([pattern], "data.sources[0]", BytesTokenizer()) == expected
    with pytest.raises(UserError, match=r"no file matches \[x\]\.idx"):
        prepared_prefixes(["[x]"], "data.sources[0]", BytesTokenizer())


def test_a_name_that_is_there_wins_over_what_it_matches(tmp_path: Path) -> None:
    for name in ("[ab]/x.txt", "a/x.txt", "b/x.txt", "[ab]/?.txt", "c/[ab].txt", "c/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for pattern, expected in {
        "[ab]/x.txt": ["[ab]/x.txt"],
        "[ab]/?.txt": ["[ab]/?.txt"],
        "[ab]/*": ["[ab]/?.txt", "[ab]/x.txt"],
        "[bc]/x.txt": ["b/x.txt"],
        "[a-z]/[ab].txt": ["c/a.txt"],
    }.items():
        assert read({"paths": [f"{tmp_path}/{pattern}"]}) == expected
    assert read({"paths": [f"{tmp_path}/**/*"], "exclude": ["[ab]", "?.txt"]}) == ["c/[ab].txt"]
    with pytest.raises(UserError, match=r"\[ab\] is a folder; write .*\[ab\]/\*\*/\* for its files"):
        read({"paths": [f"{tmp_path}/[ab]"]})


def test_remote_names_stand_for_themselves_too() -> None:
    system = fsspec.filesystem("memory")
    try:
        for name in ("[ab]/x.txt", "a/x.txt", "[ab]/y?.txt", "[ab]/yz.txt"):
            system.pipe_file(f"/names/{name}", name.encode())
        for pattern, expected in {
            "[ab]/x.txt": ["[ab]/x.txt"],
            "[ab]/y?.txt": ["[ab]/y?.txt"],
            "[ab]/y*": ["[ab]/y?.txt", "[ab]/yz.txt"],
            "[ac]/x.txt": ["a/x.txt"],
        }.items():
            found = Corpus([SourceConfig(paths=[f"memory://names/{pattern}"])])
            assert [document.text for document in found.documents()] == expected
        assert [file.name for file in Corpus([SourceConfig(paths=["memory://names/[ab]/y*"])]).files] == [
            "y?.txt",
            "yz.txt",
        ]
    finally:
        system.rm("/names", recursive=True)


def test_tokenizers_and_evaluation_data_may_lie_in_folders_of_any_name(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / ODD
    place.mkdir()
    vocabulary = {chr(33 + i): i for i in range(90)} | {"<|endoftext|>": 90}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "!"}
    special = {"id": 90, "content": "<|endoftext|>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    (place / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": [special | flags]}))
    settings = config(within(folder, ODD, "jsonl"))
    settings = settings.model_copy(
        update={
            "evaluation": [SourceConfig(kind="tokens", paths=[str(folder / ODD / "tokens" / "00[0]")])],
            "tokenizer": TokenizerConfig(kind="huggingface", path=str(place / "tokenizer.json")),
        }
    )
    assert prepare_tokenizer(settings, place / "own").vocab_size == 91
    BytesTokenizer().save(place)
    assert build_evaluation_set(settings, load_tokenizer(place), place / "cache").documents == len(TEXTS) // 3 * 2
