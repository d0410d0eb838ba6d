"""Tokens per second of greedy decoding on CPU: this project beside transformers' `generate`, with the same weights.

    python -m benchmarks.generate [--rounds 12] [--threads 2] [--only 6x384-8192-1 ...]

Each shape is LAYERSxHIDDEN-VOCABULARY-BATCH of GPT-2's block. Both sides are processes of their own that take turns,
each generating 128 tokens from prompts of 32. This project makes the model ready once (a `Generator`), as transformers
loads it once; how long that takes is in the figures.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness import Contender, Ratio, Sample, alternate, bar, report, serve

PROMPT, NEW = 32, 128


@dataclass(frozen=True)
class Shape:
    """What is generated."""

    layers: int
    hidden: int
    vocabulary: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.hidden}-{self.vocabulary}-{self.batch}"

    @property
    def bar(self) -> float | None:
        """What the speed over transformers must be at least; None: for information."""
        return {(6, 8192): 1.5, (12, 8192): 1.1}.get((self.layers, self.vocabulary))

    @property
    def prompts(self) -> torch.Tensor:
        """(batch, 32) random tokens, the same on both sides."""
        return torch.randint(self.vocabulary, (self.batch, PROMPT), generator=torch.Generator().manual_seed(0))


SHAPES = {
    shape.name: shape
    for vocabulary in (8192, 50257)
    for layers, hidden in ((6, 384), (12, 768))
    for batch in (1, 8)
    for shape in [Shape(layers, hidden, vocabulary, batch)]
}


def build_reference(shape: Shape) -> torch.nn.Module:
    """transformers' GPT-2, whose weights depend on the shape alone."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=PROMPT + NEW,
        n_embd=shape.hidden,
        n_layer=shape.layers,
        n_head=shape.hidden // 64,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def build_theirs(shape: Shape) -> Callable[[], float]:
    """transformers' `generate`, as a user calls it."""
    model, prompts = build_reference(shape), shape.prompts
    mask = torch.ones_like(prompts)

    def step() -> float:
        found = model.generate(  # type: ignore[operator]
            prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0
        )
        return checksum(found[:, PROMPT:].tolist())

    return step


def build_ours(shape: Shape) -> Callable[[], float]:
    """This project's decoding with the weights of the reference."""
    from llmscale.config import ModelConfig
    from llmscale.generate.decode import decode
    from llmscale.generate.packed import packed
    from llmscale.generate.prompts import Context
    from llmscale.generate.settings import Settings
    from llmscale.parallel.init import build

    config = ModelConfig(
        layers=shape.layers, hidden_size=shape.hidden, heads=shape.hidden // 64, max_positions=PROMPT + NEW
    )
    plain = build(config, shape.vocabulary, seed=0).eval()
    copy_weights(dict(plain.named_parameters()), dict(build_reference(shape).named_parameters()))
    began = time.perf_counter()
    model = packed(plain)
    print(f"{shape.name}: made ready in {time.perf_counter() - began:.3f} s", file=sys.stderr)
    contexts = [Context(row) for row in shape.prompts.tolist()]

    def step() -> float:
        found: list[list[int]] = [[] for _ in contexts]

        def ended(number: int, token: int) -> bool:
            found[number].append(token)
            return False

        for _ in decode(model, contexts, Settings(max_new_tokens=NEW), ended):
            pass
        return checksum(found)

    return step


@torch.no_grad()
def copy_weights(own: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Fill our GPT-2 from transformers', whose Conv1D keeps (in, out) and queries, keys and values side by side."""
    names = {
        "wte": "embedding", "wpe": "positions", "ln_f": "norm", "h.": "blocks.", "ln_1": "attention_norm",
        "ln_2": "feed_forward_norm", "attn.c_proj": "attention.output", "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.down",
    }  # fmt: skip
    for key, tensor in theirs.items():
        name = key.removeprefix("transformer.")
        turned = tensor.transpose(0, -1) if ".c_" in name else tensor
        for old, new in names.items():
            name = name.replace(old, new, 1)
        if "attn.c_attn" in name:
            for part, piece in zip(("query", "key", "value"), turned.chunk(3), strict=True):
                own[name.replace("attn.c_attn", f"attention.{part}")].copy_(piece)
        else:
            own[name][: len(turned)] = turned


def checksum(rows: Sequence[Sequence[int]]) -> float:
    """Equal for equal texts."""
    return float(hash(tuple(map(tuple, rows))) % 2**50)


BUILDERS = {"llmscale": build_ours, "transformers": build_theirs}


def median_ratio(over: Sequence[Sample], under: Sequence[Sample], clock: str, draws: int = 2000) -> Ratio:
    """Median time of `over` divided by that of `under` by the clock "wall" or "cpu", with the 95 % interval of a
    bootstrap that draws rounds."""
    pairs = [(getattr(a, clock), getattr(b, clock)) for a, b in zip(over, under, strict=True)]

    def of(rounds: Sequence[tuple[float, float]]) -> float:
        return statistics.median(a for a, _ in rounds) / statistics.median(b for _, b in rounds)

    choose = random.Random(1).choices
    resampled = sorted(of(choose(pairs, k=len(pairs))) for _ in range(draws))
    return Ratio(of(pairs), resampled[int(0.025 * draws)], resampled[int(0.975 * draws) - 1])


def measure(shape: Shape, rounds: int, threads: int) -> dict[str, list[Sample]]:
    """Times of both sides, which take turns."""
    contenders: list[Contender] = []
    try:
        for name in BUILDERS:
            command = [sys.executable, "-m", "benchmarks.generate", "--serve", name, shape.name, str(threads)]
            environment = {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": "0"}
            contenders.append(Contender(name, command, env=environment))
        alternate(contenders, warmup=2, steps=rounds)
    finally:
        for contender in contenders:
            contender.close()
    return {contender.name: contender.samples for contender in contenders}


def compare(measured: dict[str, dict[str, list[Sample]]], threads: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and bars by shape."""
    figures: dict[str, Any] = {"threads": threads, "prompt": PROMPT, "new_tokens": NEW}
    bars = []
    for name, sides in measured.items():
        shape = SHAPES[name]
        speeds = {clock: median_ratio(sides["transformers"], sides["llmscale"], clock) for clock in ("wall", "cpu")}
        same = len({sample.value for samples in sides.values() for sample in samples}) == 1
        figures[name] = {f"speed over transformers ({clock})": speed.rounded() for clock, speed in speeds.items()}
        figures[name]["same tokens"] = same
        for side, samples in sides.items():
            median = statistics.median(sample.wall for sample in samples)
            figures[name][f"{side} tokens/s"] = round(shape.batch * NEW / median, 1)
        if shape.bar is not None:
            for clock, speed in speeds.items():
                bars.append(bar(f"{name}: speed over transformers' generate ({clock})", speed, at_least=shape.bar))
    return figures, bars


def _serve(side: str, name: str, threads: str) -> None:
    def build() -> Callable[[], float]:
        torch.set_num_threads(int(threads))
        return BUILDERS[side](SHAPES[name])

    serve(build)


def main() -> None:
    """Run as a program; with --serve, be one side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="recorded generations of each side")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(SHAPES), help="shapes to run")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(*arguments.serve)
        return
    measured = {name: measure(SHAPES[name], arguments.rounds, arguments.threads) for name in arguments.only}
    report("generate", *compare(measured, arguments.threads))


if __name__ == "__main__":
    main()
