"""Names under which published directories hold tensors, tensors that are no numbers, and heads that were drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmscale.checkpoint.manifest import RunState
from llmscale.checkpoint.model import load_model
from llmscale.checkpoint.reader import Checkpoint
from llmscale.checkpoint.whole import write_whole
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.references import BYTES, CASES, VOCAB, reference, save
from tests.hugging_face.test_bad_directories import command
from tests.hugging_face.test_equal_models import both_logits
from tests.hugging_face.test_headless import written

Tensors = dict[str, Tensor]
DECODER_BIAS, BIAS = "cls.predictions.decoder.bias", "cls.predictions.bias"


def moved(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key.replace(old, new): tensor for key, tensor in tensors.items()}


def old_norms(tensors: Tensors) -> Tensors:
    return moved("LayerNorm.weight", "LayerNorm.gamma")(moved("LayerNorm.bias", "LayerNorm.beta")(tensors))


def both_biases(tensors: Tensors) -> Tensors:
    return {**tensors, DECODER_BIAS: tensors[BIAS], BIAS: tensors[BIAS]}


STORED: dict[str, tuple[str, Callable[[Tensors], Tensors]]] = {
    "the decoder's bias alone": ("bert", moved(BIAS, DECODER_BIAS)),
    "the bias alone": ("bert_masked", lambda tensors: {k: t for k, t in tensors.items() if k != DECODER_BIAS}),
    "both biases": ("bert_masked", both_biases),
    "old names of norms": ("bert", old_norms),
    "no prefix": ("bert_masked", moved("bert.", "")),
    "all at once": ("bert", lambda tensors: moved("bert.", "")(old_norms(moved(BIAS, DECODER_BIAS)(tensors)))),
    "the encoder's embedding alone": ("t5", moved("shared.weight", "encoder.embed_tokens.weight")),
    "the tied head alone": ("gpt2", moved("transformer.wte.weight", "lm_head.weight")),
    "an encoder's tied head alone": ("modernbert", moved("model.embeddings.tok_embeddings.weight", "decoder.weight")),
}  # fmt: skip


@pytest.mark.parametrize("case", STORED)
def test_tensors_are_read_under_the_names_that_transformers_reads(case: str, tmp_path: Path) -> None:
    name, change = STORED[case]
    model = reference(name)
    save(model, tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    given = {key: tensor.clone() for key, tensor in load_file(file).items()}
    changed = {key: tensor.clone() for key, tensor in change(given).items()}
    save_file(changed, file, {"format": "pt"})
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    ours = load_model(tmp_path / "ours").model
    with torch.no_grad():
        logits, expected = both_logits(name, ours.eval(), model.eval(), None)
        torch.testing.assert_close(logits[..., :VOCAB], expected, rtol=1e-5, atol=1e-5 * max(1, expected.abs().max()))
        loaded = getattr(transformers, CASES[name][0]).from_pretrained(tmp_path / "hf", attn_implementation="eager")
        torch.testing.assert_close(both_logits(name, ours, loaded.eval(), None)[1], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_that_are_no_numbers_are_refused_by_name(
    value: float, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(reference("gpt2"), tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    tensors["transformer.h.1.mlp.c_fc.bias"][3:5] = value
    save_file(tensors, file)
    assert command("import", tmp_path / "hf", tmp_path / "out", "--tokenizer", "bytes") == 2
    said = capsys.readouterr().err
    assert f"transformer.h.1.mlp.c_fc.bias in {file} has 2 of 72 values that are NaN or infinite" in said
    assert not (tmp_path / "out").exists()


def test_a_number_beyond_fp32_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(reference("gpt2"), tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {key: tensor.double() for key, tensor in load_file(file).items()}
    tensors["transformer.ln_f.weight"][0] = 1e300
    save_file(tensors, file)
    assert command("import", tmp_path / "hf", tmp_path / "out", "--tokenizer", "bytes") == 2
    assert "transformer.ln_f.weight" in capsys.readouterr().err


def rewritten(checkpoint: Path, out: Path, **state: Any) -> Path:
    """A copy of a checkpoint of weights whose manifest says something else."""
    held = Checkpoint(checkpoint)
    known = held.manifest.model_dump(include=set(RunState.model_fields))
    files = {path.name: path.read_bytes() for path in held.tokenizer.iterdir()}
    out.mkdir()
    write_whole(out, ((name, held.full(name)) for name in held.names), RunState(**{**known, **state}), files)
    return out


@pytest.mark.parametrize(("name", "theirs"), [("gptj", "lm_head.bias, lm_head.weight"), ("llama", "lm_head.weight")])
def test_a_drawn_head_is_said_until_it_is_trained(
    name: str, theirs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    written(name, tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    warning = f"warning: {theirs} were drawn by `llmscale import --new-head` and never trained since"
    assert export_checkpoint(tmp_path / "ours", tmp_path / "back")[1:] == [warning]
    assert command("checkpoint", "show", tmp_path / "ours") == 0
    assert "drawn, not trained" in capsys.readouterr().out
    load_model(tmp_path / "ours")
    assert "never trained since" in caplog.text

    trained = rewritten(tmp_path / "ours", tmp_path / "trained", drawn=[])
    assert len(export_checkpoint(trained, tmp_path / "after")) == 1
    # Nothing of it is written where nothing was drawn, so that older versions read such checkpoints.
    assert "drawn" not in json.loads((trained / "manifest.json").read_text())


def test_a_whole_model_has_no_drawn_head(tmp_path: Path) -> None:
    save(reference("llama"), tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    assert len(export_checkpoint(tmp_path / "ours", tmp_path / "back")) == 1
    shutil.rmtree(tmp_path / "back")
