"""There and back: nothing is lost, transformers loads what is written, and a checkpoint of ours can be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from data_pipeline.tokenizer import prepare_tokenizer
from llmscale.checkpoint.commands import show, verify
from llmscale.checkpoint.model import load_model
from llmscale.config import ModelConfig, parse_config
from llmscale.config.function import function_of
from llmscale.families.hugging_face import COMMON, Settings
from llmscale.hugging_face.classes import recognise
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from llmscale.parallel.init import build, build_hollow
from llmscale.slices.tensor_slice import TensorSlice
from llmscale.train.initial import start_from
from tests.hugging_face.references import BYTES, CASES, NAMES, VOCAB, reference, save, tokens

IMMATERIAL = {
    "dtype", "transformers_version", "_name_or_path", "use_cache", "initializer_range", "rope_scaling",
    "tie_word_embeddings", "max_window_layers", "torch_dtype", "num_nextn_predict_layers",
}  # fmt: skip
"""Keys in which a config.json may differ and give the same model; tying is seen in the tensors."""


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in a directory, of whatever number of files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def class_of(name: str) -> Any:
    return getattr(transformers, CASES[name][0])


@pytest.mark.parametrize("name", NAMES)
def test_import_and_export_change_no_bit(name: str, tmp_path: Path) -> None:
    theirs = reference(name)
    save(theirs, tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    export_checkpoint(tmp_path / "ours", tmp_path / "back")
    before, after = stored_tensors(tmp_path / "hf"), stored_tensors(tmp_path / "back")
    assert set(before) == set(after)
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
        assert tensor.dtype == after[key].dtype

    loaded, info = class_of(name).from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation="eager"
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    given, got = (transformers.AutoConfig.from_pretrained(tmp_path / part).to_dict() for part in ("hf", "back"))
    options = set(getattr(transformers, CASES[name][1])().to_dict())
    matter = {key for key in options - IMMATERIAL if not re.search("token_id|classifier_dropout|summary_first", key)}
    differing = {key: (given.get(key), got.get(key)) for key in matter if spelled(given, key) != spelled(got, key)}
    assert differing == {}
    theirs.eval(), loaded.eval()
    inputs = {"input_ids": tokens()} | (
        {"decoder_input_ids": tokens(length=5)} if name.startswith(("t5", "mt5")) else {}
    )
    with torch.no_grad():
        assert torch.equal(theirs(**inputs)[0], loaded(**inputs)[0])


def spelled(config: dict[str, Any], key: str) -> Any:
    """A value where several spellings mean the same."""
    value = config.get(key)
    if key in ("n_inner", "intermediate_size") and value is None:
        return 4 * (config.get("n_embd") or config.get("hidden_size"))
    if key == "head_dim" and value is None:
        return config["hidden_size"] // config["num_attention_heads"]
    of_experts = ("n_group", "topk_group", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
    if key in of_experts and config.get("first_k_dense_replace") == config["num_hidden_layers"]:
        return None
    if key == "rope_parameters":
        # Written is the factor itself, in place of what it follows from.
        return {name: given for name, given in (value or {}).items() if name not in ("attention_factor", "mscale")}
    if key == "attention_types":
        return config["attention_layers"]
    return value


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "t5_v1_1"])
def test_several_files_are_read_and_written(name: str, tmp_path: Path) -> None:
    save(reference(name), tmp_path / "hf", max_shard_size="40KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", shard_size="50kB")
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    before, after = stored_tensors(tmp_path / "hf"), stored_tensors(tmp_path / "back")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    for file in files:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
        assert names == {key for key, place in index["weight_map"].items() if place == file.name}
        assert sum(after[key].nbytes for key in names) <= 50_000 or len(names) == 1
    assert all(torch.equal(before[key], after[key]) for key in before.keys() | after.keys())
    _, info = class_of(name).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info.values())


def test_narrow_tensors_are_read_and_written(tmp_path: Path) -> None:
    theirs = reference("llama").bfloat16()
    save(theirs, tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "ours", tokenizer=BYTES)
    export_checkpoint(tmp_path / "ours", tmp_path / "back", dtype="bf16")
    before, after = stored_tensors(tmp_path / "hf"), stored_tensors(tmp_path / "back")
    assert all(after[key].dtype == torch.bfloat16 and torch.equal(before[key], after[key]) for key in before)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "mixtral"])
def test_an_imported_checkpoint_can_be_used(name: str, tmp_path: Path) -> None:
    save(reference(name), tmp_path / "hf")
    out = tmp_path / "ours"
    import_directory(tmp_path / "hf", out, tokenizer=BYTES)
    assert "intact" in verify(out)
    assert "weight" in show(out)
    trained = load_model(out)
    rows = trained.model.embedding.weight
    assert len(rows) == 384
    assert torch.all(rows[VOCAB:] == 0)
    assert torch.any(rows[:VOCAB] != 0, dim=1).all()
    # A run that starts from it has the same model and tokenizer.
    config = trained.config
    roles = [role for role in ("cls", "sep", "mask") if name == "bert"]
    if not roles:
        tokenizer = prepare_tokenizer(config.data, tmp_path / "tokenizer")
        fresh = build_hollow(config.model, config.model.vocabulary(tokenizer.vocab_size))
        weights = start_from(fresh, str(out), tokenizer)
        for (key, parameter), trained_one in zip(fresh.named_parameters(), trained.model.parameters(), strict=True):
            assert torch.equal(weights(key, TensorSlice.whole(parameter.shape)), trained_one.flatten())


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_their_class_is_known(name: str) -> None:
    """No option of transformers' config class is passed over because nobody thought of it."""
    config = getattr(transformers, CASES[name][1])
    settings = Settings({"model_type": config.model_type})
    found = recognise({"model_type": config.model_type}, Path("config.json"))
    table, model = found.table, found.model
    known = {*COMMON, *(field for field, _, _ in table.fields), *(table.fixed or {}), *table.unused}
    known |= {*table.dropout, *table.attention_dropout, *table.other_dropout}
    given = config(vocab_size=VOCAB).to_dict()
    read = Settings(given)
    table.read(read)
    assert set(given) - known - read._read == set()
    # What their class takes where a key is absent is what we take.
    theirs = recognise(config().to_dict(), Path("config.json")).model
    assert function_of(ModelConfig.model_validate(model)) == function_of(ModelConfig.model_validate(theirs))
    assert model["vocab_size"] == theirs["vocab_size"]
    assert settings.notes == []


def test_older_names_and_layouts_are_read(tmp_path: Path) -> None:
    """What published directories hold beside today's tensors: no prefix, masks, copies, TensorFlow's norm names."""
    from safetensors.torch import save_file

    for name in ("gpt2", "bert", "t5", "llama"):
        save(reference(name), tmp_path / name)
        tensors = stored_tensors(tmp_path / name)
        if name == "gpt2":
            old = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
            old["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
            old["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        elif name == "bert":
            old = {
                key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
                for key, tensor in tensors.items()
            }
            old["bert.embeddings.position_ids"] = torch.arange(24)[None]
            old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
            config = json.loads((tmp_path / name / "config.json").read_text())
            (tmp_path / name / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
        elif name == "t5":
            old = {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].clone()}
            old["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 4)
        else:
            old = {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
        save_file(old, tmp_path / name / "model.safetensors")
        import_directory(tmp_path / name, tmp_path / f"{name}-ours", tokenizer=BYTES)
        export_checkpoint(tmp_path / f"{name}-ours", tmp_path / f"{name}-back")
        back = stored_tensors(tmp_path / f"{name}-back")
        assert set(back) == set(tensors)
        assert all(torch.equal(tensors[key], back[key]) for key in tensors)


OWN = {
    "gpt3": {"family": "gpt3", "window": 4},
    "pangu_alpha": {"family": "pangu_alpha"},
    "wu_dao": {"family": "wu_dao", "layers": 4},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi", "norm": "rmsnorm"},
}


def write_checkpoint(folder: Path, model: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> Path:
    """A checkpoint of a model with drawn weights, as a run would leave it."""
    from llmscale.checkpoint.manifest import RunState
    from llmscale.checkpoint.whole import write_whole

    sizes = {"layers": 2, "hidden_size": 32, "heads": 4, "max_positions": 16, "vocab_size": VOCAB, "init_std": 0.2}
    config = parse_config(
        {
            "run": {"directory": "r"},
            "data": {"sources": [{"paths": ["a"]}], "tokenizer": tokenizer or {"kind": "bytes"}, "sequence_length": 8},
            "model": {**sizes, **model},
        }
    )
    made = prepare_tokenizer(config.data, folder.with_name(f"{folder.name}-tokenizer"))
    files = {file.name: file.read_bytes() for file in folder.with_name(f"{folder.name}-tokenizer").iterdir()}
    built = build(config.model, config.model.vocabulary(made.vocab_size), seed=3)
    folder.mkdir()
    state = RunState(samples=0, config=config.model_dump(mode="json"))
    write_whole(folder, ((name, p.detach()) for name, p in built.named_parameters()), state, files)
    return folder


@pytest.mark.parametrize("name", OWN)
def test_models_without_a_class_come_back(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", OWN[name])
    (said,) = export_checkpoint(tmp_path / "run", tmp_path / "hf", shard_size="50kB")
    assert "transformers has no class for this model" in said
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llmscale"
    import_directory(tmp_path / "hf", tmp_path / "ours")
    before, after = load_model(tmp_path / "run"), load_model(tmp_path / "ours")
    assert before.config.model.model_dump() == after.config.model.model_dump()
    assert before.tokenizer.digest == after.tokenizer.digest
    for (key, tensor), (other, back) in zip(
        before.model.named_parameters(), after.model.named_parameters(), strict=True
    ):
        assert key == other
        rows = VOCAB if key in ("embedding.weight", "head.weight") else len(tensor)
        assert torch.equal(tensor[:rows], back[:rows]), key


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, "GPT2LMHeadModel"),
        ({"family": "megatron_nlg"}, "GPT2LMHeadModel"),
        ({"family": "gpt3", "attention_pattern": ["global"]}, "GPT2LMHeadModel"),
        ({"family": "llama"}, "LlamaForCausalLM"),
        ({"family": "llama", "attention_pattern": ["local"], "window": 4}, "MistralForCausalLM"),
        ({"family": "llama", "head_size": 12, "hidden_size": 36, "heads": 8}, "MistralForCausalLM"),
        (
            {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False, "query_key_norm": True},
            "Qwen3ForCausalLM",
        ),
        ({"family": "wu_dao", "experts": None}, "GPT2LMHeadModel"),
        ({"family": "mixtral", "experts": {"count": 4, "capacity_factor": 1.0}}, "MixtralForCausalLM"),
        ({"family": "bert", "next_sentence": False}, "BertForMaskedLM"),
    ],
)
def test_the_class_follows_from_the_parts(model: dict[str, Any], expected: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", model)
    (said,) = export_checkpoint(tmp_path / "run", tmp_path / "hf")
    assert expected in said
    loaded, info = getattr(transformers, expected).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    ours, ids = load_model(tmp_path / "run").model, tokens(length=12)
    with torch.no_grad():
        theirs = loaded.eval()(input_ids=ids).logits
        torch.testing.assert_close(ours.head(ours(ids).hidden)[..., :VOCAB], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            {"family": "gpt3", "window": 4},
            "GPT2LMHeadModel, but model.attention_pattern is ['global', 'local'], where GPT2LMHeadModel has ['global']",
        ),
        (
            {"family": "mistral", "window": 8, "attention_pattern": ["global", "local"]},
            "MistralForCausalLM, but model.attention_pattern is ['global', 'local'], where MistralForCausalLM has",
        ),
        (
            {"family": "llama", "positions": "alibi"},
            "LlamaForCausalLM, but model.positions is alibi, where LlamaForCausalLM has rotary",
        ),
        (
            {"family": "mixtral", "experts": None, "parallel_residual": True},
            "MixtralForCausalLM, but model.experts is None, where MixtralForCausalLM has",
        ),
        (
            {"family": "llama", "parallel_residual": True},
            "LlamaForCausalLM, but model.parallel_residual is true, where",
        ),
        (
            {"family": "gpt2", "bias": False},
            "GPT2LMHeadModel, but model.norm_bias is false, where GPT2LMHeadModel has true",
        ),
        ({"family": "gptj", "activation": "swiglu"}, "GPTJForCausalLM, but model.activation is swiglu"),
        ({"family": "bert", "token_types": 0, "next_sentence": False}, "but model.token_types is 0"),
        ({"family": "bert", "tied_embeddings": False}, "but model.tied_embeddings is false, where BertForMaskedLM has"),
        # The tokenizer's padding token is 0, behind which the positions would have to begin.
        ({"family": "roberta"}, "but model.position_offset is 2, where RobertaForMaskedLM has 1"),
    ],
)
def test_what_stands_in_the_way_is_named(model: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", model)
    (said,) = export_checkpoint(tmp_path / "run", tmp_path / "hf")
    assert reason in said
