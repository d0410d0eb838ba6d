"""Directories that somebody made to do harm: pickles behind another name, files of JSON without end, pipes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.base.errors import UserError
from llmscale.hugging_face.importing import import_directory
from llmscale.hugging_face.tensors import TensorFolder
from tests.hugging_face.references import BYTES, reference, save
from tests.hugging_face.test_bad_directories import command

DEEP = '{"a":' * 200_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "gpt2"
    save(reference("gpt2"), folder)
    return folder


def index(folder: Path, file: str, content: object) -> None:
    """Move the tensors into `file`, a pickle, which a safetensors index names."""
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "weights", "model.safetensors.bin"])
def test_an_index_of_safetensors_that_names_a_pickle(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    tensors = load_file(folder / "model.safetensors")
    index(folder, file, tensors)
    assert command("import", folder, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert file in message
    assert "--allow-pickle" in message
    assert not (tmp_path / "out").exists()
    held = TensorFolder(folder, allow_pickle=True)
    assert {name: held.read(name).tolist() for name in held.names} == {k: v.tolist() for k, v in tensors.items()}


@pytest.mark.parametrize("kind", ["code", "a list", "numbers for tensors", "numbers for names"])
def test_what_an_allowed_pickle_may_not_hold(good: Path, tmp_path: Path, kind: str) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    shutil.copytree(good, folder)
    names = list(load_file(folder / "model.safetensors"))
    contents = {
        "code": Harm(mark),
        "a list": [torch.ones(2)],
        "numbers for tensors": dict.fromkeys(names, 1.0),
        "numbers for names": {1: torch.ones(2)},
    }
    index(folder, "model.bin", contents[kind])
    with pytest.raises(UserError, match=r"model\.bin"):
        import_directory(folder, tmp_path / "out", allow_pickle=True, tokenizer=BYTES)
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\0b"])
def test_an_index_may_not_name_a_file_outside(good: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    names = list(load_file(tmp_path / "model.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
    with pytest.raises(UserError, match=r"index\.json"):
        import_directory(folder, tmp_path / "out", tokenizer=BYTES)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
@pytest.mark.parametrize("kind", ["deep", "digits", "a pipe", "a device"])
def test_a_file_without_end(good: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    path = folder / name
    path.unlink(missing_ok=True)
    text = DEEP.encode() if kind == "deep" else b'{"vocab_size": ' + b"9" * 5_000 + b"}"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(len(text).to_bytes(8, "little") + text if name == "model.safetensors" else text)
    given = None if name.startswith("tokenizer") else BYTES
    said = ""
    try:
        import_directory(folder, tmp_path / "out", tokenizer=given)
    except UserError as error:
        said = str(error)
    # A pipe or a device where a file may be absent is as good as absent.
    assert name in said or name in ("generation_config.json", "tokenizer_config.json")
    assert len(said) < 1_000
    assert (tmp_path / "out").exists() == (not said)
