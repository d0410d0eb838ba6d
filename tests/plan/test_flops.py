"""Operations: those that torch counts in a real forward and backward pass, and published formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmscale.config import ModelConfig
from llmscale.parallel.init import build
from llmscale.plan.flops import flops
from llmscale.plan.workload import Workload

VOCAB, BATCH, LENGTH = 96, 2, 32
SHAPE = {"layers": 3, "hidden_size": 64, "heads": 4, "max_positions": 64, "vocab_multiple": 32}


@pytest.mark.parametrize(
    "changes",
    [{"family": "gpt2"}, {"family": "llama", "ffn_size": 96}, {"family": "gptj"}, {"family": "t5"}, {"family": "bert"}],
    ids=lambda changes: changes["family"],
)
def test_torch_counts_as_many_operations(changes: dict[str, Any]) -> None:
    config = ModelConfig(**{**SHAPE, **changes, "next_sentence": False})
    memory = 2 * LENGTH if config.architecture == "encoder_decoder" else 0
    # In bf16, since torch does not count the product that the head adds in place to its fp32 sum.
    model = build(config, VOCAB, seed=0).bfloat16()
    inputs = torch.randint(0, VOCAB, (BATCH, LENGTH))
    others = {"encoder_inputs": torch.randint(0, VOCAB, (BATCH, memory))} if memory else {}
    # Fused kernels of a CPU are not counted; plain products of scores are.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.head(model(inputs, **others).hidden, inputs).backward()
    expected = BATCH * flops(config, Workload(VOCAB, LENGTH, memory=memory)).model
    # The sum over tokens that is the gradient of the head's bias is written as a product.
    expected += 2 * BATCH * LENGTH * config.padded_vocab(VOCAB) if config.head_bias else 0
    assert counter.get_total_flops() == expected


def test_experts_count_by_how_many_each_token_goes_to() -> None:
    dense = ModelConfig(family="llama", layers=1, hidden_size=64, heads=4, ffn_size=96)
    sparse = dense.model_copy(update={"experts": ModelConfig(experts={"count": 8, "per_token": 2}).experts})
    work = Workload(VOCAB, LENGTH)
    more = flops(sparse, work).projections - flops(dense, work).projections
    assert more == 2 * LENGTH * (64 * 8 + 3 * 64 * 96)


def test_attention_is_counted_at_what_tokens_see() -> None:
    config = ModelConfig(layers=2, hidden_size=64, heads=4, attention_pattern=["global", "local"], window=8)
    work = Workload(VOCAB, LENGTH)
    places = range(LENGTH)
    band = sum(1 for query in places for key in places if 0 <= query - key < 8)
    half = sum(1 for query in places for key in places if query >= key)
    assert flops(config, work).attention == 4 * 64 * (LENGTH**2 + band)
    assert flops(config, work, causal=True).attention == 4 * 64 * (half + band)
    encoder = config.model_copy(update={"architecture": "encoder"})
    wide = sum(1 for query in range(1000) for key in range(1000) if abs(query - key) <= 4)
    assert flops(encoder, Workload(VOCAB, 1000)).attention == pytest.approx(4 * 64 * (1000**2 + wide), rel=1e-3)


def test_of_masked_models_the_head_sees_the_hidden_tokens_only() -> None:
    config = ModelConfig(family="bert", layers=1, hidden_size=64, heads=4)
    work = Workload(VOCAB, 100, targets=0.15)
    rows = config.padded_vocab(VOCAB)
    pair = 2 * 64 * (64 + 2)
    assert flops(config, work).head == 2 * 15 * 64 * (rows + 64) + pair


def test_selective_recomputation_repeats_attention_that_is_not_fused() -> None:
    config = ModelConfig(**SHAPE)
    numbers = flops(config, Workload(VOCAB, LENGTH))
    assert numbers.recomputed("none") == numbers.recomputed("selective") == 0
    assert numbers.recomputed("selective", fused_attention=False) == numbers.attention
    assert numbers.recomputed("block") == numbers.projections + numbers.attention
