"""The training steps that the benchmarks compare, each built in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[], float]
"""Runs one training step and returns its loss in nats per token."""


@dataclass(frozen=True)
class Shape:
    """What all contenders train, and where."""

    layers: int = 6
    hidden: int = 384
    heads: int = 6
    sequence: int = 256
    batch: int = 8
    vocabulary: int = 8192
    llama: bool = False
    """Rotary positions, RMSNorm, SwiGLU, an untied head and no biases, instead of GPT-2's parts."""
    ffn: int = 1536
    device: str = "cpu"
    dtype: str = "fp32"
    """Of weights and arithmetic: fp32 or bf16."""
    compiled: bool = False
    """Whether this project's blocks are compiled."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.sequence

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """(rows, in, out) of every matrix product of a forward pass outside of attention's own."""
        up = [(self.hidden, self.ffn)] * (2 if self.llama else 1)
        block = [(self.hidden, self.hidden)] * 4 + up + [(self.ffn, self.hidden)]
        return [(self.tokens_per_step, *sizes) for sizes in block * self.layers + [(self.hidden, self.vocabulary)]]

    @property
    def flops(self) -> int:
        """Floating-point operations of these products in one step: forward, and twice as many backward."""
        return sum(6 * rows * inner * outer for rows, inner, outer in self.products)

    @cached_property
    def tokens(self) -> Tensor:
        """(batch, sequence + 1) random token ids, the same for every contender."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.vocabulary, (self.batch, self.sequence + 1), generator=generator).to(self.device)

    @property
    def model(self) -> dict[str, Any]:
        """The `model` section of a config of this project."""
        kind: dict[str, Any] = {}
        if self.llama:
            kind = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}
            kind["tied_embeddings"] = False
        sizes = {"layers": self.layers, "hidden_size": self.hidden, "heads": self.heads, "ffn_size": self.ffn}
        return {**sizes, "max_positions": self.sequence, **kind}


LR, BETAS, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0


def plain_loop(model: nn.Module, mean_loss: Callable[[], Tensor]) -> Step:
    """Forward, backward, clip, fused AdamW: what a plain training script does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> float:
        loss = mean_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def build_bare_step(shape: Shape) -> Step:
    """This project's module in a plain loop."""
    from llmscale.config import ModelConfig
    from llmscale.parallel.init import build

    model = build(ModelConfig(**shape.model), shape.vocabulary, seed=0, device=shape.device).to(shape.torch_dtype)
    if shape.compiled:
        for block in model.blocks:
            block.compile()
    inputs, targets = shape.tokens[:, :-1], shape.tokens[:, 1:]
    weights = torch.ones(targets.shape, device=shape.device)
    return plain_loop(model, lambda: model.head(model(inputs).hidden, targets, weights) / targets.numel())


def build_engine_step(shape: Shape) -> Step:
    """This project's step through its engine (DeepSpeed ZeRO 1), as the trainer takes it."""
    from data_pipeline.batch import Batch
    from llmscale.config import parse_config
    from llmscale.engine.distributed import join, read_world
    from llmscale.engine.engine import Engine
    from llmscale.objectives import build_loss
    from llmscale.parallel.grid import RankGrid
    from llmscale.parallel.init import build

    config = parse_config(
        {
            "run": {"directory": "unused", "device": torch.device(shape.device).type},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": shape.sequence},
            "model": shape.model,
            "optimizer": {"lr": LR, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "clip": CLIP},
            "schedule": {"name": "constant"},
            "train": {"global_batch": shape.batch, "micro_batch": shape.batch},
            "engine": {"dtype": shape.dtype, "compile": shape.compiled},
        }
    )
    world = read_world(config.run.device)
    join(world)
    model = build(config.model, shape.vocabulary, seed=0)
    engine = Engine(model, build_loss(config.objective, config.model), config, RankGrid().with_groups(), world.device)
    targets = shape.tokens[:, 1:]
    weights = torch.ones(targets.shape, device=shape.device)
    batch = Batch(shape.tokens[:, :-1], targets, weights, torch.arange(shape.batch, device=shape.device))
    steps = itertools.count()

    def step() -> float:
        (loss,), _ = engine.train_step([batch], next(steps), [targets.numel()])
        return loss / targets.numel()

    return step


def build_transformers_step(shape: Shape, *, compiled: bool, dropout: float = 0.0) -> Step:
    """transformers' GPT-2 or Llama in the same loop, with its own loss, which predicts one token less a sequence."""
    torch.manual_seed(0)
    with torch.device(shape.device):
        model = (_llama(shape) if shape.llama else _gpt2(shape, dropout)).to(shape.torch_dtype).train()
    run = torch.compile(model) if compiled else model
    inputs = shape.tokens[:, :-1].contiguous()
    return plain_loop(model, lambda: run(input_ids=inputs, labels=inputs).loss)


def _gpt2(shape: Shape, dropout: float) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.sequence,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_inner=shape.ffn,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config)


def _llama(shape: Shape) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.sequence,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def build_gemm_step(shape: Shape) -> Step:
    """Only the step's matrix products, into memory that is already there: what the machine can do at most."""
    work = []
    for rows, inner, outer in sorted(set(shape.products)):
        sizes = [(rows, inner), (outer, inner), (rows, outer)]
        factors = [torch.randn(size, device=shape.device).to(shape.torch_dtype) for size in sizes]
        work.append((shape.products.count((rows, inner, outer)), factors, [torch.empty_like(f) for f in factors]))

    def step() -> float:
        for count, (x, weight, gradient), (grad_x, grad_weight, out) in work:
            for _ in range(count):
                torch.mm(x, weight.T, out=out)
                torch.mm(gradient, weight, out=grad_x)
                torch.mm(gradient.T, x, out=grad_weight)
        if shape.device != "cpu":
            torch.cuda.synchronize()
        return 0.0

    return step
