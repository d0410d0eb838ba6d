"""Activations: the bytes that autograd really keeps, counted by storage."""

from __future__ import annotations

import contextlib
import gc
from typing import Any

import pytest
import torch

from llmscale.config import ModelConfig
from llmscale.engine.activation_checkpointing import apply_activation_checkpointing
from llmscale.model import Dropout, Transformer
from llmscale.parallel.init import build
from llmscale.plan.activations import Activations
from llmscale.plan.layout import Layout
from llmscale.plan.saved import forward
from llmscale.plan.workload import Workload

VOCAB, BATCH, LENGTH = 500, 3, 96
WITHIN = 0.005
SHAPE: dict[str, Any] = {
    "layers": 4, "hidden_size": 128, "heads": 8, "ffn_size": 512, "max_positions": LENGTH, "vocab_multiple": 4
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "gpt2 with dropout": {"family": "gpt2", "dropout": 0.1},
    "gpt2 with all dropout": {"family": "gpt2", "dropout": 0.1, "attention_dropout": 0.1},
    "llama": {"family": "llama", "ffn_size": 344},
    "qwen3": {"family": "qwen3", "kv_heads": 2, "head_size": 24, "ffn_size": 300},
    "gpt_neox": {"family": "gpt_neox"},
    "gptj": {"family": "gptj"},
    "gpt3": {"family": "gpt3", "window": 24},
    "bert": {"family": "bert", "next_sentence": False},
    "t5": {"family": "t5"},
    "pangu_alpha": {"family": "pangu_alpha"},
    "relu": {"activation": "relu", "norm": "rmsnorm", "positions": "alibi"},
    "gpt2 with documents apart": {"family": "gpt2"},
    "gpt2 with documents apart and all dropout": {"family": "gpt2", "dropout": 0.1, "attention_dropout": 0.1},
    "alibi with dropout": {"positions": "alibi", "attention_dropout": 0.1},
    "t5 with dropout": {"family": "t5", "dropout": 0.1, "attention_dropout": 0.1},
    "t5_v1_1": {"family": "t5_v1_1"},
    "modernbert": {"family": "modernbert", "window": 24},
    "mixtral": {"family": "mixtral", "kv_heads": 4, "ffn_size": 256, "experts": {"count": 8, "per_token": 2}},
}


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Bytes by address of storage."""
    found: dict[int, int] = {}
    for storage in (tensor.untyped_storage() for tensor in tensors):
        # Tensors that torch.compile traced for another test have a size and no address.
        with contextlib.suppress(RuntimeError):
            found[storage.data_ptr()] = storage.nbytes()
    return {address: size for address, size in found.items() if size}


def live() -> list[torch.Tensor]:
    """What the garbage collector knows, apart from what is frozen."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]


def run(model: Transformer, config: ModelConfig, memory: int, apart: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss, and what was handed in."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, VOCAB, (BATCH, LENGTH), generator=draw)
    targets, weights = inputs.clone(), torch.ones(BATCH, LENGTH)
    drops = config.dropout or config.attention_dropout
    dropout = Dropout.of(1, torch.arange(BATCH)) if drops else None
    others = {"encoder_inputs": torch.randint(0, VOCAB, (BATCH, memory), generator=draw)} if memory else {}
    if apart:
        others = {"segment_ids": torch.arange(LENGTH).expand(BATCH, -1) // 40}
    hidden, loss = model(inputs, dropout=dropout, **others)
    loss = model.head(hidden, targets, weights) + (0.0 if loss is None else loss.sum())
    return loss, [targets, weights]


def kept(config: ModelConfig, mode: Any, memory: int, apart: bool) -> int:
    """Bytes of all distinct storages that the backward pass is given, weights and targets not counted.

    Hooks see what autograd saves. What recomputation keeps besides (results of products, and biases that all layers
    share) is not saved that way but held by Python, where the garbage collector finds it.
    """
    gc.collect()
    gc.freeze()  # what exists by now: then only what is made below has to be looked through
    model = build(config, VOCAB, seed=0)
    apply_activation_checkpointing(model, mode, draws=False)
    model.train()
    before = storages([*live(), *model.parameters(), *model.buffers()])
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, given = run(model, config, memory, apart)
    held = storages(saved)
    if mode != "none":
        held |= storages(live())
    for tensor in [loss, *given]:
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(size for address, size in held.items() if address not in before)


def forecast(config: ModelConfig, mode: str, memory: int, apart: bool) -> int:
    work = Workload(VOCAB, LENGTH, memory=memory, masked=apart)
    acts = Activations(
        config, work, Layout(micro_batch=BATCH, activation_checkpointing=mode), element=4, fused_norms=False
    )
    return forward(acts).total


@pytest.mark.parametrize("mode", ["none", "selective", "block"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_autograd_keeps_is_forecast(name: str, mode: str) -> None:
    config = ModelConfig(**{**SHAPE, **FAMILIES[name]})
    memory = 2 * LENGTH if config.architecture == "encoder_decoder" else 0
    config = config.model_copy(update={"max_positions": 2 * LENGTH}) if memory else config
    apart = "documents apart" in name
    measured, expected = kept(config, mode, memory, apart), forecast(config, mode, memory, apart)
    assert expected == pytest.approx(measured, rel=WITHIN), f"{name} {mode}: {expected:,} forecast, {measured:,} kept"


def test_tensor_parallelism_cuts_what_lies_inside_the_sub_layers_and_sequence_the_rest_too() -> None:
    """Korthikanti et al. 2022, table 2, without dropout: 10 of 34 sbh are outside, of which the linear layers' inputs
    stay whole here, since they are gathered for the forward pass and kept."""
    config = ModelConfig(layers=1, hidden_size=256, heads=8, bias=False)
    work, whole = Workload(VOCAB, 64), 64 * 256 * 2

    def block(**sizes: Any) -> int:
        values = Activations(config, work, Layout(**sizes)).block(0, 64)
        return sum(size for name, size in values.items() if name not in ("norm statistics", "attention sums"))

    assert block() == 16 * whole
    assert block(tensor=4) == 4 * whole + 12 * whole // 4
    assert block(tensor=4, sequence_parallel=True) == 2 * whole + 14 * whole // 4
    assert block(context=4) == pytest.approx((16 + 1) * whole / 4)
