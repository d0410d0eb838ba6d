"""Low-rank factors beside peft's layers: the same initial values and batches give the same losses and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.checkpoint.reader import newest_intact
from llmscale.config import ModelConfig, parse_config
from llmscale.hugging_face.adapters import read_adapter
from llmscale.hugging_face.factors import modules_of, to_ours
from llmscale.hugging_face.importing import import_directory
from llmscale.hugging_face.weights import plan, shapes_of
from llmscale.model import Transformer, skeleton
from llmscale.model.factors import is_factor
from tests.hugging_face.references import BYTES, VOCAB, reference, save, table_of, tokens

peft = pytest.importorskip("peft")
STEPS = 20
FUSED = {
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense"],
    "modernbert": ["Wqkv", "attn.Wo", "Wi", "mlp.Wo"],
}
"""All linear layers of the blocks, where theirs holds several of ours: the function is the same, but A is shared."""
ALONE = {
    "gpt2": ["attn.c_proj", "c_fc", "mlp.c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "bert": ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "deepseek_v3_dense": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
}
"""Linear layers that correspond one to one."""


def both(name: str, targets: list[str], folder: Path, **settings: Any) -> tuple[Transformer, nn.Module]:
    """Our model and peft's with the same weights and factors; ours are those that peft saved."""
    theirs = reference(name)
    import_directory(save(theirs, folder / "hf"), folder / "ours", tokenizer=BYTES)
    config = peft.LoraConfig(r=4, lora_alpha=10, target_modules=targets, exclude_modules=".*(cls|head).*", **settings)
    torch.manual_seed(11)
    adapted = peft.get_peft_model(theirs, config)
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder / "adapter")
    return with_adapter(folder / "ours", folder / "adapter"), adapted


def with_adapter(base: Path, adapter: Path) -> Transformer:
    """Our model of a checkpoint with the factors of a folder that peft saved, which alone are to be trained."""
    read, checkpoint = read_adapter(adapter), newest_intact(base)
    plain: ModelConfig = parse_config(dict(checkpoint.manifest.config)).model
    factors: dict[str, Tensor] = {}
    for move in plan(table_of(str(plain.family)), plain, shapes_of(plain, VOCAB)):
        given = [read.factors.get(each.removesuffix(".weight")) for each in move.theirs]
        if modules_of(move) and all(given):
            for layer, each in to_ours(move, [each for each in given if each is not None]).items():
                factors |= {f"{layer}.lora_a": each.down, f"{layer}.lora_b": each.up}
                factors |= {} if each.magnitude is None else {f"{layer}.magnitude": each.magnitude}
    targets = sorted({layer.rpartition(".")[0] for layer in factors})
    lora = read.lora.model_copy(update={"targets": targets})
    ours = skeleton(plain.model_copy(update={"lora": lora}), VOCAB)
    ours.to_empty(device="cpu")
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            parameter.copy_(factors[key] if is_factor(key) else checkpoint.full(key))
    assert {key for key, _ in ours.named_parameters() if is_factor(key)} == set(factors)
    for key, parameter in ours.named_parameters():
        parameter.requires_grad_(is_factor(key))
    return ours.train()


def losses(name: str, ours: Transformer, theirs: nn.Module, step: int) -> tuple[Tensor, Tensor]:
    """Ours and theirs for the batch of a step."""
    inputs, targets = tokens(seed=step), tokens(seed=step + 100)
    if name.startswith("t5"):
        mine, other = ours(targets, encoder_inputs=inputs), {"input_ids": inputs, "decoder_input_ids": targets}
    else:
        mine, other = ours(inputs), {"input_ids": inputs}
    logits = theirs(**other)
    logits = logits.prediction_logits if name == "bert" else logits.logits
    ours_logits = ours.head(mine.hidden)[..., :VOCAB]
    return tuple(F.cross_entropy(each.flatten(0, 1), targets.flatten()) for each in (ours_logits, logits))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_training_is_that_of_peft(name: str, dora: bool, tmp_path: Path) -> None:
    ours, theirs = both(name, ALONE[name], tmp_path, use_dora=dora, use_rslora=dora)
    # SGD with clipping shows a wrong scale of the gradient, which Adam hides.
    optimizers = [
        torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.2)
        for model in (ours, theirs)
    ]
    found = []
    for step in range(STEPS):
        pair = losses(name, ours, theirs, step % 4)
        for model, optimizer, loss in zip((ours, theirs), optimizers, pair, strict=True):
            optimizer.zero_grad()
            loss.backward()
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
        found.append([loss.item() for loss in pair])
    mine, other = torch.tensor(found).T
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=0)
    assert mine[-4:].mean() < mine[:4].mean() - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", FUSED)
def test_one_weight_of_several_layers_is_the_same_function(name: str, dora: bool, tmp_path: Path) -> None:
    ours, theirs = both(name, FUSED[name], tmp_path, use_dora=dora)
    mine, other = losses(name, ours, theirs, 0)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=0)
