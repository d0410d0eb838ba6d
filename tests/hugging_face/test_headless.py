"""Directories of models without their head, as transformers' AutoModel writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmscale.checkpoint.model import load_model
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.model import Transformer
from llmscale.parallel.init import build
from tests.hugging_face.references import BYTES, VARIANTS, VOCAB, headless, reference, save, tokens
from tests.hugging_face.test_bad_directories import command
from tests.hugging_face.test_equal_models import ENCODERS, T5, real, types
from tests.hugging_face.test_round_trips import class_of, stored_tensors, write_checkpoint

TRANSFORM = ["head.bias", "head.dense.bias", "head.dense.weight", "head.norm.bias", "head.norm.weight"]
CLASSIFIER = ["next_sentence.classifier.bias", "next_sentence.classifier.weight"]
DRAWN: dict[str, list[str]] = {
    "gpt2": [],
    "gpt_neo": [],
    "t5": [],
    "mt5": [],
    "qwen2_sliding": [],
    "starcoder2": [],
    "llama3": [],
    "granite": [],
    "deepseek_v3_biased": [],
    "opt": [],
    "glm": [],
    "glm4_unbiased": [],
    "gemma": [],
    "gemma3_text": [],
    "falcon": [],
    "falcon_new": [],
    "falcon_serial": [],
    "olmo2_biased": [],
    "smollm3": [],
    "olmoe_biased": [],
    "bloom": [],
    "gptj": ["head.bias", "head.weight"],
    "phi": ["head.bias", "head.weight"],
    "phi_wide_heads": ["head.bias"],
    "bert": [*TRANSFORM, *CLASSIFIER],
    "bert_masked": [*TRANSFORM, *CLASSIFIER],
    "roberta": TRANSFORM,
    "xlm_roberta": TRANSFORM,
    "modernbert": ["head.bias", "head.dense.weight", "head.norm.weight"],
    "modernbert_biased": ["head.dense.bias", "head.dense.weight", "head.norm.bias", "head.norm.weight"],
}
"""Our names of what each case's directory lacks, `head.weight` where it is not here; tied heads are the embedding."""


def written(name: str, folder: Path, **settings: Any) -> nn.Module:
    """The model that is saved in a new folder."""
    theirs = headless(name, **settings)
    save(theirs, folder)
    if name == "t5_v1_1":
        # transformers 5 writes that the head is tied, whatever the config was; 4 did not.
        edit(folder, tie_word_embeddings=False)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [type(theirs).__name__]
    return theirs.eval()


def edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def hidden_states(name: str, ours: Transformer, theirs: nn.Module, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Ours and theirs before the head, at the places of real tokens."""
    ids, attention = tokens(), mask.long()
    if name in T5:
        decoder = tokens(length=9, seed=3)
        own = ours(decoder, encoder_inputs=ids, encoder_padding_mask=mask).hidden
        given = {"attention_mask": attention, "decoder_input_ids": decoder}
        return own, theirs(input_ids=ids, **given).last_hidden_state
    if name in ENCODERS:
        own = ours(ids, token_types=types(name), padding_mask=mask).hidden
        extra = {} if types(name) is None else {"token_type_ids": types(name)}
        return own[mask], theirs(input_ids=ids, attention_mask=attention, **extra).last_hidden_state[mask]
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    own = ours(ids, positions, padding_mask=mask).hidden
    output = theirs(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=False)
    return own[mask], output.last_hidden_state[mask]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_without_its_head(name: str, tmp_path: Path) -> None:
    # No class with a head has RoBERTa's pooler.
    theirs = written(name, tmp_path / "hf", **({"add_pooling_layer": False} if "roberta" in name else {}))
    lacking = DRAWN.get(name, ["head.weight"])
    said = import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=bool(lacking))
    trained = load_model(tmp_path / "ours")
    ours = trained.model.eval()
    with torch.no_grad():
        for left in (False, True):
            own, expected = hidden_states(name, ours, theirs, real(left))
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)

    # What the directory lacks is as in a fresh run with this config, and nothing else is.
    fresh = dict(build(trained.config.model, VOCAB, trained.config.run.seed).named_parameters())
    drawn = {key for key, tensor in ours.named_parameters() if torch.equal(tensor, fresh[key])}
    assert drawn == set(lacking)
    assert any("--new-head drew " in line for line in said) == bool(drawn)

    # It goes back whole: each tensor that was given is the same, and transformers lacks none.
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    # The pooler makes a BertForPreTraining of both BERTs.
    loaded, info = class_of("bert" if name == "bert_masked" else name).from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation="eager"
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    base = loaded.eval().base_model if name not in T5 else transformers.T5Model.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        own, expected = hidden_states(name, ours, base, real())
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
    before, after = stored_tensors(tmp_path / "hf"), stored_tensors(tmp_path / "back")
    for given, tensor in before.items():
        assert any(torch.equal(tensor, other) for key, other in after.items() if key.endswith(given)), given
    assert len(after) == len(before) + len(drawn)


@pytest.mark.parametrize("name", ["bert", "bert_masked"])
@pytest.mark.parametrize("classes", [["BertModel"], None])
def test_a_bert_without_pooler_has_no_next_sentence_head(name: str, classes: list[str] | None, tmp_path: Path) -> None:
    theirs = written(name, tmp_path / "hf", add_pooling_layer=False)
    edit(tmp_path / "hf", architectures=classes)
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    trained = load_model(tmp_path / "ours")
    assert trained.model.next_sentence is None
    assert not trained.config.objective.next_sentence
    with torch.no_grad():
        torch.testing.assert_close(*hidden_states(name, trained.model, theirs, real()), rtol=1e-5, atol=1e-5)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    _, info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())


def test_the_pooler_of_roberta_is_left_out_with_a_note(tmp_path: Path) -> None:
    theirs = written("roberta", tmp_path / "hf")
    said = import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    assert any("note: roberta.pooler.dense.bias, roberta.pooler.dense.weight not used:" in line for line in said)
    ours = load_model(tmp_path / "ours").model
    with torch.no_grad():
        torch.testing.assert_close(*hidden_states("roberta", ours, theirs, real()), rtol=1e-5, atol=1e-5)


def test_a_bert_with_pooler_keeps_it(tmp_path: Path) -> None:
    theirs = written("bert", tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    ours, ids = load_model(tmp_path / "ours").model, tokens()
    with torch.no_grad():
        pooled = ours.next_sentence.pooler(ours(ids, token_types=types("bert")).hidden[:, 0]).tanh()
        expected = theirs(input_ids=ids, token_type_ids=types("bert")).pooler_output
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


def test_a_masked_bert_that_stores_its_pooler_lacks_a_classifier_only(tmp_path: Path) -> None:
    """Parts of a head that are stored are kept."""
    save(reference("bert"), tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if "seq_relationship" not in key}
    save_file(kept, tmp_path / "hf" / "model.safetensors")
    edit(tmp_path / "hf", architectures=["BertForMaskedLM"])
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES, new_head=True)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    back = stored_tensors(tmp_path / "back")
    assert set(back) - set(kept) == {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
    assert all(torch.equal(back[key], tensor) for key, tensor in kept.items())


def test_new_head_of_our_own_form(tmp_path: Path) -> None:
    """A directory of a model that transformers has no class for."""
    write_checkpoint(tmp_path / "run", {"positions": "alibi", "tied_embeddings": False})
    export_checkpoint(tmp_path / "run", tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    del tensors["head.weight"]
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    import_directory(tmp_path / "hf", tmp_path / "ours", new_head=True)
    trained = load_model(tmp_path / "ours")
    fresh = build(trained.config.model, VOCAB, trained.config.run.seed)
    assert torch.equal(trained.model.head.weight, fresh.head.weight)
    assert torch.equal(trained.model.embedding.weight[:VOCAB], tensors["embedding.weight"])


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(folder: str, *words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = command("import", tmp_path / folder, tmp_path / "out", "--tokenizer", "bytes", *words)
        captured = capsys.readouterr()
        said = captured.out + captured.err.strip()
        assert "Traceback" not in said
        assert code == 0 or len(said.splitlines()) == 1
        assert (tmp_path / "out").exists() == (code == 0)
        return code, said

    written("bert", tmp_path / "bert")
    transform = [f"transform.{part}.{kind}" for part in ("LayerNorm", "dense") for kind in ("bias", "weight")]
    lacking = [f"cls.predictions.{part}" for part in ("bias", *transform)]
    lacking += ["cls.seq_relationship.bias", "cls.seq_relationship.weight"]
    code, said = run("bert")
    assert code == 2
    assert f"lacks {', '.join(lacking)} of the model's head; give --new-head to draw what is missing" in said

    # A tensor of the body is never drawn, and is what is said first.
    written("llama", tmp_path / "llama")
    tensors = load_file(tmp_path / "llama" / "model.safetensors")
    lost = {key: tensor for key, tensor in tensors.items() if key != "layers.1.mlp.up_proj.weight"}
    save_file(lost, tmp_path / "llama" / "model.safetensors")
    for words in ([], ["--new-head"]):
        code, said = run("llama", *words)
        assert code == 2
        assert "lacks the tensor model.layers.1.mlp.up_proj.weight of shape [72, 40], which the model of its" in said

    save_file({**tensors, "layers.1.extra": torch.ones(2)}, tmp_path / "llama" / "model.safetensors")
    code, said = run("llama", "--new-head")
    assert code == 2
    assert "has the tensor layers.1.extra of shape [2]" in said

    save(reference("llama"), tmp_path / "whole")
    code, said = run("whole", "--new-head")
    assert code == 0
    assert f"note: --new-head drew nothing, since {tmp_path / 'whole'} holds all of the head" in said
    (tmp_path / "out").rename(tmp_path / "first")

    code, said = run("bert", "--new-head")
    assert code == 0
    assert f"note: --new-head drew {', '.join(lacking)}" in said
