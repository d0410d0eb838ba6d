"""The training steps that the benchmarks compare, each built in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data_pipeline.batch import Batch
from llmscale.config import RunConfig, parse_config

Step = Callable[[], float]
"""Runs one training step and returns its loss in nats per token."""


@dataclass(frozen=True)
class Shape:
    """What all contenders train, and where."""

    family: Literal["gpt2", "llama", "bert", "t5"] = "gpt2"
    """Of the model's parts, and so of its loss: the next token, hidden tokens (bert), or cut spans (t5)."""
    layers: int = 6
    """Of the encoder as well, where there are two stacks."""
    hidden: int = 384
    heads: int = 6
    sequence: int = 256
    """Tokens of a sample: of the encoder, where there are two stacks."""
    batch: int = 8
    vocabulary: int = 8192
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
    def target_sequence(self) -> int:
        """Tokens that a decoder beside an encoder reads: a quarter, about the share of T5's span corruption."""
        return self.sequence // 4

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.sequence

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """(rows, in, out) of every matrix product of a forward pass outside of attention's own. The head counts the
        tokens that are predicted."""
        rows, wide, square = self.tokens_per_step, (self.hidden, self.ffn), (self.hidden, self.hidden)
        feed_forward = [wide] * (2 if self.family == "llama" else 1) + [wide[::-1]]
        block = [(rows, *sizes) for sizes in [square] * 4 + feed_forward] * self.layers
        predicted = self.predicted
        head = [(predicted, self.hidden, self.vocabulary)]
        if self.family == "bert":
            return [*block, (predicted, *square), *head]
        if self.family == "t5":
            # Self-attention and the queries of cross-attention; its keys and values are of the encoder's tokens.
            decoder = [(predicted, *sizes) for sizes in [square] * 6 + feed_forward] + [(rows, *square)] * 2
            return [*block, *decoder * self.layers, *head]
        return [*block, *head]

    @property
    def predicted(self) -> int:
        """Target tokens of a step."""
        if self.family == "bert":
            return int(self.hidden_tokens.sum())
        return self.batch * (self.target_sequence if self.family == "t5" else self.sequence)

    @property
    def flops(self) -> int:
        """Floating-point operations of these products in one step: forward, and twice as many backward."""
        return sum(6 * rows * inner * outer for rows, inner, outer in self.products)

    @cached_property
    def tokens(self) -> Tensor:
        """(batch, sequence + 1) random token ids, the same for every contender."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.vocabulary, (self.batch, self.sequence + 1), generator=generator).to(self.device)

    @cached_property
    def hidden_tokens(self) -> Tensor:
        """(batch, sequence) booleans: the 15 % of the tokens that bert has to predict."""
        generator = torch.Generator().manual_seed(1)
        return torch.rand(self.batch, self.sequence, generator=generator).lt(0.15).to(self.device)

    @property
    def training_batch(self) -> Batch:
        """What this project's losses read."""
        inputs, targets = self.tokens[:, :-1], self.tokens[:, 1:]
        weights = torch.ones(targets.shape, device=self.device)
        numbers = torch.arange(self.batch, device=self.device)
        if self.family == "bert":
            return Batch(inputs, inputs, self.hidden_tokens.float(), numbers)
        if self.family == "t5":
            size = self.target_sequence
            start = torch.zeros_like(targets[:, :1])
            shifted = torch.cat([start, targets[:, : size - 1]], dim=1)
            return Batch(shifted, targets[:, :size], weights[:, :size], numbers, encoder_inputs=inputs)
        return Batch(inputs, targets, weights, numbers)

    @property
    def objective(self) -> dict[str, Any]:
        """The `objective` section of a config of this project."""
        return {"name": {"bert": "masked", "t5": "denoising"}.get(self.family, "causal")}

    @property
    def model(self) -> dict[str, Any]:
        """The `model` section of a config of this project."""
        sizes = {"layers": self.layers, "hidden_size": self.hidden, "heads": self.heads, "ffn_size": self.ffn}
        kind = {"next_sentence": False} if self.family == "bert" else {}
        return {"family": self.family, **sizes, "max_positions": self.sequence, **kind}


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
    from llmscale.engine.engine import compile_blocks
    from llmscale.objectives.loss import build_loss
    from llmscale.parallel.init import build

    config = _config(shape)
    model = build(config.model, shape.vocabulary, seed=0, device=shape.device).to(shape.torch_dtype)
    if shape.compiled:
        compile_blocks(model)
    loss, batch = build_loss(config.objective, config.model), shape.training_batch
    return plain_loop(model, lambda: loss(model, batch)[0] / shape.predicted)


def build_engine_step(shape: Shape) -> Step:
    """This project's step through its engine (DeepSpeed ZeRO 1), as the trainer takes it."""
    from llmscale.distributed.process_group import join, read_world
    from llmscale.engine.engine import Engine
    from llmscale.engine.settings import EngineSettings
    from llmscale.objectives.loss import build_loss
    from llmscale.parallel.grid import RankGrid
    from llmscale.parallel.init import build

    config = _config(shape)
    world = read_world(config.run.device)
    join(world)
    model = build(config.model, shape.vocabulary, seed=0)
    loss = build_loss(config.objective, config.model)
    engine = Engine(model, loss, EngineSettings.of(config), RankGrid().with_groups(), world.device)
    batch = shape.training_batch
    steps = itertools.count()

    def step() -> float:
        (loss,), _ = engine.train_step([batch], next(steps), [shape.predicted])
        return loss / shape.predicted

    return step


def _config(shape: Shape) -> RunConfig:
    return parse_config(
        {
            "run": {"directory": "unused", "device": torch.device(shape.device).type},
            "data": {"sources": [{"paths": ["unused"]}], "sequence_length": shape.sequence},
            "model": shape.model,
            "objective": shape.objective,
            "optimizer": {"lr": LR, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "clip": CLIP},
            "schedule": {"name": "constant"},
            "train": {"global_batch": shape.batch, "micro_batch": shape.batch},
            "engine": {"dtype": shape.dtype, "compile": shape.compiled},
        }
    )


def build_transformers_step(shape: Shape, *, compiled: bool, dropout: float = 0.0) -> Step:
    """transformers' model of the family in the same loop, with its own loss.

    That of a decoder predicts one token less a sequence than ours.
    """
    torch.manual_seed(0)
    with torch.device(shape.device):
        model = TRANSFORMERS[shape.family](shape, dropout).to(shape.torch_dtype).train()
    run = torch.compile(model) if compiled else model
    batch = shape.training_batch
    inputs = batch.inputs.contiguous()
    if shape.family == "bert":
        labels = batch.targets.masked_fill(~shape.hidden_tokens, -100)
        return plain_loop(model, lambda: run(input_ids=inputs, labels=labels).loss)
    if shape.family == "t5":
        assert batch.encoder_inputs is not None
        source, labels = batch.encoder_inputs.contiguous(), batch.targets.contiguous()
        return plain_loop(model, lambda: run(input_ids=source, labels=labels).loss)
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


def _llama(shape: Shape, dropout: float) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.sequence,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        attention_dropout=dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def _bert(shape: Shape, dropout: float) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.sequence,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="sdpa",
    )
    return BertForMaskedLM(config)


def _t5(shape: Shape, dropout: float) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.hidden,
        d_kv=shape.hidden // shape.heads,
        d_ff=shape.ffn,
        num_layers=shape.layers,
        num_heads=shape.heads,
        dropout_rate=dropout,
        pad_token_id=0,
        decoder_start_token_id=0,
        use_cache=False,
    )
    return T5ForConditionalGeneration(config)


TRANSFORMERS = {"gpt2": _gpt2, "llama": _llama, "bert": _bert, "t5": _t5}


def build_gemm_step(shape: Shape, *, own: bool = False) -> Step:
    """Only the step's matrix products: what the machine can do at most, by torch.mm or as this project multiplies."""
    from llmscale.model.linear import outer, product

    work = []
    for rows, inner, outside in sorted(set(shape.products)):
        sizes = [(rows, inner), (outside, inner), (rows, outside)]
        factors = [torch.randn(size, device=shape.device).to(shape.torch_dtype) for size in sizes]
        work.append((shape.products.count((rows, inner, outside)), factors))

    def by_torch(x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        torch.mm(x, weight.T)
        torch.mm(gradient, weight)
        torch.mm(gradient.T, x)

    def by_project(x: Tensor, weight: Tensor, gradient: Tensor) -> None:
        product(x, weight)
        product(gradient, weight.T)
        outer(gradient, x)

    multiply = by_project if own else by_torch

    def step() -> float:
        for count, factors in work:
            for _ in range(count):
                multiply(*factors)
        if shape.device != "cpu":
            torch.cuda.synchronize()
        return 0.0

    return step
