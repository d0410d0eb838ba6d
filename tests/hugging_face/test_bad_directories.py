"""What is wrong with a directory is said in one sentence, with exit code 2, and nothing is left behind."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmscale import cli
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.references import BYTES, reference, save
from tests.hugging_face.test_round_trips import write_checkpoint

Change = Callable[[Path], None]


def command(*words: object) -> int:
    """The exit code of the command; its messages are in the captured output."""
    sys.argv = ["llmscale", *map(str, words)]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("click always exits")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of a GPT-2 in one file and in several."""
    folder = tmp_path_factory.mktemp("good")
    save(reference("gpt2"), folder / "single")
    save(reference("gpt2"), folder / "sharded", max_shard_size="40KB")
    return folder


def edit_config(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        found = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in found.items() if value != "absent"}))

    return change


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def put(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def smaller_vocabulary(folder: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:200].contiguous()

    edit_config(vocab_size=200)(folder)
    edit_tensors(cut)(folder)


UP = "transformer.h.1.mlp.c_fc.weight"
SINGLE: dict[str, tuple[Change, list[str]]] = {
    "unknown architecture": (
        edit_config(model_type="mamba"),
        ["model_type is 'mamba'", "gpt_neox, gptj, granite, llama, mistral"],
    ),
    "no architecture": (edit_config(model_type="absent"), ["model_type is None"]),
    "another head": (
        edit_config(architectures=["GPT2DoubleHeadsModel"]),
        ["GPT2DoubleHeadsModel", "GPT2LMHeadModel"],
    ),
    "activation": (edit_config(activation_function="quick_gelu"), ["activation_function is 'quick_gelu'", "gelu_new"]),
    "option": (
        edit_config(scale_attn_by_inverse_layer_idx=True),
        ["scale_attn_by_inverse_layer_idx is True, but llmscale has it False only"],
    ),
    "quantized": (edit_config(quantization_config={"bits": 4}), ["quantization_config", "dequantize"]),
    "indivisible": (edit_config(n_head=7), ["hidden_size (40) must be divisible by heads (7)"]),
    "wrong kind": (edit_config(n_layer="three"), ["n_layer is 'three', but must be a whole number"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["there is no", "config.json"]),
    "broken JSON": (put("config.json", "{"), ["config.json is not JSON"]),
    "no object": (put("config.json", "[]"), ["config.json holds a JSON list where an object is needed"]),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), ["neither model.safetensors nor"]),
    "pickle": (pickled, ["pytorch_model.bin only", "--allow-pickle"]),
    "cut short": (put("model.safetensors", "abc"), ["cannot read", "model.safetensors", "download it again"]),
    "missing": (edit_tensors(lambda tensors: tensors.__delitem__(UP)), [f"lacks the tensor {UP} of shape [40, 72]"]),
    "unexpected": (
        edit_tensors(lambda tensors: tensors.update({"transformer.extra": torch.ones(2, 3)})),
        ["has the tensor transformer.extra of shape [2, 3]"],
    ),
    "shape": (
        edit_tensors(lambda tensors: tensors.update({UP: torch.ones(40, 70)})),
        [f"{UP} in", "has shape [40, 70], but [40, 72] by its config.json"],
    ),
    "integers": (
        edit_tensors(lambda tensors: tensors.update({UP: torch.ones(40, 72, dtype=torch.int8)})),
        [UP, "torch.int8", "dequantize"],
    ),
    "larger tokenizer": (
        smaller_vocabulary,
        ["has 259 tokens, but the model's vocab_size is 200"],
    ),
}


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("mistake", SINGLE)
def test_a_bad_directory(mistake: str, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = SINGLE[mistake]
    folder = copied(good / "single", tmp_path / "hf")
    change(folder)
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("llmscale: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1, said
    for part in expected:
        assert part in said
    assert {path.name for path in tmp_path.iterdir()} == {"hf"}


def test_missing_parts_of_several_files(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(good / "sharded", tmp_path / "hf")
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes") == 2
    assert f"{shard} is missing" in capsys.readouterr().err

    tensors = load_file(sorted(folder.glob("*.safetensors"))[0])
    shard.write_bytes(content)
    lost = sorted(load_file(shard))[0]
    save_file({key: tensor for key, tensor in load_file(shard).items() if key != lost} or tensors, shard)
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes") == 2
    assert f"{shard} lacks {lost}, which model.safetensors.index.json says it holds" in capsys.readouterr().err

    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes") == 2
    assert "names the file '../outside.safetensors', which is not in the folder" in capsys.readouterr().err


def test_places_and_tokenizers(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    assert command("import", good / "single", tmp_path / "taken", "--tokenizer", "bytes") == 2
    assert f"{tmp_path / 'taken'} exists already" in capsys.readouterr().err
    assert command("import", tmp_path / "nowhere", tmp_path / "out") == 2
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
    assert command("import", good / "single", tmp_path / "out") == 2
    assert "holds no tokenizer (tokenizer.json, vocab.json with merges.txt" in capsys.readouterr().err

    run = write_checkpoint(tmp_path / "run", {})
    assert command("export", run, tmp_path / "taken") == 2
    assert "exists already" in capsys.readouterr().err
    assert command("export", run, tmp_path / "hf", "--shard-size", "many") == 2
    assert "--shard-size is 'many'" in capsys.readouterr().err
    assert command("export", tmp_path / "nowhere", tmp_path / "hf") == 2
    assert "no checkpoint or run directory" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_a_pickle_is_read_where_it_is_asked_for(good: Path, tmp_path: Path) -> None:
    folder = copied(good / "single", tmp_path / "hf")
    pickled(folder)
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes", "--allow-pickle") == 0
    import_directory(good / "single", tmp_path / "same", tokenizer=BYTES)
    first, second = (load_file(tmp_path / name / "rank-00000.safetensors") for name in ("out", "same"))
    assert all(torch.equal(first[key], second[key]) for key in first.keys() | second.keys())


def test_a_pickle_that_would_run_code_is_not_read(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    folder = copied(good / "single", tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Evil()}, folder / "pytorch_model.bin")
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes", "--allow-pickle") == 2
    assert "pytorch_model.bin" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_what_is_not_carried_over_is_said(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(good / "single", tmp_path / "hf")
    edit_config(embd_pdrop=0.1, unheard_of=3)(folder)
    assert command("import", folder, tmp_path / "out", "--tokenizer", "bytes") == 0
    said = capsys.readouterr().out
    assert "note: llmscale has one rate for resid_pdrop 0.0, embd_pdrop 0.1, and takes the first" in said
    assert "note: unheard_of not used" in said


def test_the_commands_do_what_they_say(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("Some text of no length at all.")
    assert command("import", good / "single", tmp_path / "out", "--tokenizer", "bytes") == 0
    assert "a gpt2 model of" in capsys.readouterr().out
    assert command("export", tmp_path / "out", tmp_path / "hf", "--dtype", "bf16") == 0
    assert "GPT2LMHeadModel in bf16" in capsys.readouterr().out
    assert command("eval", tmp_path / "out", "--data", tmp_path / "text.txt") == 0
    assert "bits per byte" in capsys.readouterr().out
    assert command("generate", tmp_path / "out", "--prompt", "a", "--max-new-tokens", "3") == 0
    assert capsys.readouterr().out.startswith("a")
    assert command("checkpoint", "verify", tmp_path / "out") == 0
