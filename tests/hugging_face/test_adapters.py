"""Adapters in PEFT's format: from peft and back, beside what peft computes; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.base.errors import UserError
from llmscale.checkpoint.merging import merge
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.hugging_face.adapting import export_adapter, import_adapter
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.references import BYTES, CASES, VOCAB, reference, save, tokens
from tests.model.test_low_rank import ALONE, FUSED

peft = pytest.importorskip("peft")
TARGETS: dict[str, Any] = {
    **ALONE,
    **FUSED,
    "gpt2_two_of_three": ["c_attn", "c_fc"],
    "mixtral": ["q_proj", "w1", "w2", "w3"],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6}, "alpha_pattern": {"q_proj": 3}},
    "t5": {"use_rslora": True, "alpha_pattern": {"wo": 5}},
}


def adapted(name: str, folder: Path, **settings: Any) -> nn.Module:
    """peft's model with random factors, saved in `adapter`, and its base, imported as `base`."""
    base = name.removesuffix("_two_of_three")
    theirs = reference(base).eval()
    import_directory(save(theirs, folder / "hf"), folder / "base", tokenizer=BYTES)
    exclude = ".*(cls|head).*"
    config = peft.LoraConfig(
        r=4, lora_alpha=10, target_modules=TARGETS[name], exclude_modules=exclude, **SETTINGS.get(name, {}), **settings
    )
    torch.manual_seed(11)
    model = peft.get_peft_model(theirs, config)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    return model.eval()


def logits_of(model: nn.Module) -> Tensor:
    inputs = {"input_ids": tokens()} | (
        {"decoder_input_ids": tokens(seed=8)} if model.config.is_encoder_decoder else {}
    )
    with torch.no_grad():
        output = model(**inputs)
    return output.prediction_logits if "prediction_logits" in output else output.logits


def our_logits(trained: TrainedModel) -> Tensor:
    sources = {"encoder_inputs": tokens()} if trained.model.encoder is not None else {}
    with torch.no_grad():
        hidden = trained.model(tokens(seed=8) if sources else tokens(), **sources).hidden
        return trained.model.head(hidden)[..., :VOCAB]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "phi3", "gpt_neox", "modernbert", "deepseek_v3_dense"])
def test_peft_and_back(name: str, dora: bool, tmp_path: Path) -> None:
    expected = logits_of(adapted(name, tmp_path, use_dora=dora))
    import_adapter(tmp_path / "adapter", tmp_path / "ours", tmp_path / "base")
    close(our_logits(load_model(tmp_path / "ours")), expected)
    # Our files in peft.
    export_adapter(tmp_path / "ours", tmp_path / "exported")
    base = getattr(transformers, CASES[name][0]).from_pretrained(tmp_path / "hf", attn_implementation="eager")
    close(logits_of(peft.PeftModel.from_pretrained(base, tmp_path / "exported").eval()), expected)
    # And back, to the bit.
    import_adapter(tmp_path / "exported", tmp_path / "back", tmp_path / "base")
    ours, back = (load_model(tmp_path / folder).checkpoint for folder in ("ours", "back"))
    assert all(torch.equal(ours.full(each), back.full(each)) for each in {*ours.names, *back.names})
    # Merged, as a plain model of transformers and as a checkpoint of ours.
    assert "largest difference" in export_checkpoint(tmp_path / "ours", tmp_path / "merged")[1]
    plain = getattr(transformers, CASES[name][0]).from_pretrained(tmp_path / "merged", attn_implementation="eager")
    close(logits_of(plain.eval()), expected)
    merge(tmp_path / "ours", tmp_path / "whole")
    whole = load_model(tmp_path / "whole")
    assert whole.config.model.lora is None
    close(our_logits(whole), expected)


@pytest.mark.slow
def test_factors_of_each_expert(tmp_path: Path) -> None:
    """transformers 5 holds experts in one tensor, for which peft turns an adapter of single experts into its own."""
    theirs = reference("mixtral").eval()
    import_directory(save(theirs, tmp_path / "hf"), tmp_path / "base", tokenizer=BYTES)
    folder = tmp_path / "adapter"
    folder.mkdir()
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["w1", "w2", "w3"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    sizes = {"w1": (72, 40), "w2": (40, 72), "w3": (72, 40)}
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(3):
        for expert in range(5):
            for part, (outputs, inputs) in sizes.items():
                key = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(4, inputs, generator=generator) * 0.2
                tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    import_adapter(folder, tmp_path / "ours", tmp_path / "base")
    export_adapter(tmp_path / "ours", tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    assert exported.keys() == tensors.keys()
    assert all(torch.equal(exported[key], tensors[key]) for key in tensors)
    base = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    expected = logits_of(peft.PeftModel.from_pretrained(base, tmp_path / "exported").eval())
    close(our_logits(load_model(tmp_path / "ours")), expected)


@pytest.mark.slow
def test_a_head_beside_the_factors(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=72,
        max_position_embeddings=24, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(2)
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "base", tokenizer=BYTES)
    given = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(theirs, given).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key or "modules_to_save" in key:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "ours", tmp_path / "base")
    trained = load_model(tmp_path / "ours")
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(trained.checkpoint.full("classification.classifier.weight"), head.weight)
    export_adapter(tmp_path / "ours", tmp_path / "exported")
    values = json.loads((tmp_path / "exported" / "adapter_config.json").read_text())
    assert values["task_type"] == "SEQ_CLS"
    assert "classifier" in values["modules_to_save"]
    base = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "hf")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "exported").eval()
    close(logits_of(loaded), logits_of(model))


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def _tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "adapter" / "adapter_model.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path)

    return write


def _magnitudes(held: dict[str, Tensor], count: int | None) -> dict[str, Tensor]:
    """As many of each module as `count` says, or as it has outputs."""
    ends = {key: key.replace("lora_B.weight", "lora_magnitude_vector") for key in held if "lora_B" in key}
    return {end: torch.ones(count or len(held[key])) for key, end in ends.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    adapted("llama", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (_config(peft_type="IA3"), ["peft_type is 'IA3'", "LORA"]),
        (_config(bias="all"), ["bias is 'all'", "'none'"]),
        (_config(init_lora_weights="pissa"), ["init_lora_weights is 'pissa'"]),
        (_config(lora_alpha="x"), ["lora_alpha is 'x'", "a number above 0"]),
        (_config(alpha_pattern={"(": 3}), ["alpha_pattern has '('"]),
        (lambda folder: (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 40), ["cannot read"]),
        (lambda folder: (folder / "adapter" / "adapter_model.safetensors").unlink(), ["there is no"]),
        (lambda folder: (folder / "adapter" / "adapter_config.json").write_text("[1]"), ["JSON list"]),
        (_tensors(lambda held: {key.replace("q_proj", "qq"): value for key, value in held.items()}), ["qq", "Llama"]),
        (
            _tensors(lambda held: {key: value[..., 1:] if "lora_A" in key else value for key, value in held.items()}),
            ["71 inputs", "base that the adapter was trained on"],
        ),
        (_tensors(lambda held: {key: value * torch.inf for key, value in held.items()}), ["NaN or infinite"]),
        (
            _tensors(lambda held: {**held, **_magnitudes(held, 1)}),
            ["1 magnitudes, but"],
        ),
        (
            _tensors(lambda held: {**held, **dict([*_magnitudes(held, None).items()][:2])}),
            ["lacks", "lora_magnitude_vector, which other modules have"],
        ),
        (
            _tensors(
                lambda held: {key: value for key, value in held.items() if "0.self_attn.q_proj.lora_B" not in key}
            ),
            ["lacks", "q_proj.lora_B.weight"],
        ),
    ],
)
def test_what_cannot_be_read_is_refused(
    made: Path, spoil: Callable[[Path], None], parts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    for file in (made / "adapter").iterdir():
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(UserError) as refused:
        import_adapter(tmp_path / "adapter", tmp_path / "ours", made / "base")
    for part in parts:
        assert part in str(refused.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda said: {**said, "lora": {**said["lora"], "rank": 3}}, "rank 3 for 21 layers"),
        (lambda said: {**said, "lora": {**said["lora"], "targets": ["query"]}}, "for 3 layers"),
        (lambda said: {**said, "lora": {"rnak": 3}}, "cannot read"),
        (lambda said: {**said, "columns": 7}, "cannot read"),
        (lambda said: [said], "cannot read"),
    ],
)
def test_what_an_adapter_says_of_itself_is_held_against_it(
    made: Path, change: Callable[[Any], Any], part: str, tmp_path: Path
) -> None:
    import_adapter(made / "adapter", tmp_path / "ours", made / "base")
    export_adapter(tmp_path / "ours", tmp_path / "exported")
    path = tmp_path / "exported" / "adapter_model.safetensors"
    with safe_open(path, "pt") as held:
        said = json.loads(held.metadata()["llmscale"])
    save_file(load_file(path), path, metadata={"llmscale": json.dumps(change(said))})
    with pytest.raises(UserError, match=part):
        import_adapter(tmp_path / "exported", tmp_path / "back", made / "base")
    assert not (tmp_path / "back").exists()


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(made: Path, tmp_path: Path) -> None:
    import_adapter(made / "adapter", tmp_path / "ours", made / "base")
    export_adapter(tmp_path / "ours", tmp_path / "exported")
    merge(tmp_path / "ours", tmp_path / "other")  # of the same names and shapes
    with pytest.raises(UserError, match="belongs to another base: it was trained on weights of digest"):
        import_adapter(tmp_path / "exported", tmp_path / "back", tmp_path / "other")
    with pytest.raises(UserError, match="has an adapter itself"):
        import_adapter(tmp_path / "exported", tmp_path / "back", tmp_path / "ours")
    with pytest.raises(UserError, match=r"has no adapter, since it was trained without finetune\.lora"):
        export_adapter(made / "base", tmp_path / "none")
    with pytest.raises(UserError, match="without the model that it belongs to"):
        import_directory(made / "adapter", tmp_path / "none")
    with pytest.raises(UserError, match="above --largest-difference 1e-12"):
        export_checkpoint(tmp_path / "ours", tmp_path / "none", largest_difference=1e-12)
    with pytest.raises(UserError, match="no low-rank factors"):
        merge(made / "base", tmp_path / "none")
    assert not (tmp_path / "none").exists()
