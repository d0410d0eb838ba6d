"""The rules of layouts stated a second time, by dealing out what ranks share, without a line of llmscale.layout."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple


class L(NamedTuple):
    """A layout as a test writes it."""

    ranks: int
    pipeline: int = 1
    data: int | None = None
    context: int = 1
    tensor: int = 1
    sequence_parallel: bool = False
    expert: int = 1
    zero_stage: int = 1
    compile: bool = False
    activation_checkpointing: str = "none"


@dataclass(frozen=True)
class Model:
    """A config as text, and beside it, by hand, the numbers that count."""

    overrides: tuple[str, ...]
    heads: int = 12
    kv_heads: int = 12
    widths: tuple[int, ...] = (96, 48)
    """Of the vocabulary's multiple and of feed-forward layers."""
    lengths: tuple[int, ...] = (24,)
    shares: tuple[int, ...] = (48, 96)
    """Samples of each step, and lanes."""
    layers: int = 6
    two_stacks: bool = False
    experts: int = 0
    optimizer: str = "adamw"


BASE = (
    "model={heads: 12, hidden_size: 48, ffn_size: 48, layers: 6, max_positions: 1024, vocab_multiple: 96}",
    "data.sequence_length=24",
    "data.lanes=96",
    "train.global_batch=48",
)
MODELS = {
    "gpt": Model(BASE),
    "grouped": Model((*BASE, "model.kv_heads=4", "model.ffn_size=144"), kv_heads=4, widths=(96, 144)),
    "six_kv": Model((*BASE, "model.kv_heads=6", "data.sequence_length=36"), kv_heads=6, lengths=(36,)),
    "one_kv": Model((*BASE, "model.kv_heads=1"), kv_heads=1),
    "narrow": Model((*BASE, "model.ffn_size=40", "model.vocab_multiple=128"), widths=(128, 40)),
    "experts": Model(
        (*BASE, "model.experts={count: 4, ffn_size: 24, every: 2}", "train.global_batch=24"),
        widths=(96, 48, 24),
        shares=(24, 96),
        experts=4,
    ),
    "all_experts": Model(
        # No dense layer has this width.
        (*BASE, "model.experts={count: 6, ffn_size: 24}", "model.ffn_size=7"),
        widths=(96, 24),
        experts=6,
    ),
    # 512 tokens of the encoder are 114 of the decoder (Raffel et al. 2020, code: random_spans_helper).
    "t5": Model(
        (*BASE, "model.architecture=encoder_decoder", "objective.name=denoising", "data.sequence_length=512"),
        lengths=(512, 114),
        two_stacks=True,
    ),
    "pairs": Model(
        (*BASE, "model.architecture=encoder_decoder", "objective={name: seq2seq, target_length: 20}"),
        lengths=(24, 20),
        two_stacks=True,
    ),
    "one_line": Model(
        (*BASE, "objective={name: seq2seq, target_length: 12, concatenate: true}"),
        lengths=(36,),
    ),
    "bert": Model((*BASE, "model.architecture=encoder", "objective.name=masked")),
    "muon": Model((*BASE, "optimizer.name=muon"), optimizer="muon"),
    "muon_experts": Model(
        (*BASE, "optimizer.name=muon", "model.experts={count: 4}"), widths=(96, 48), experts=4, optimizer="muon"
    ),
    "adafactor": Model((*BASE, "optimizer.name=adafactor"), optimizer="adafactor"),
    "ramp": Model(
        (*BASE, "train.batch_ramp={start: 24, increment: 12, samples: 500}", "train.steps=100"),
        shares=(24, 36, 48, 96),
    ),
    "finite": Model((*BASE, "data.order=finite", "data.lanes=7"), shares=(48,)),
}

# What is refused until a test proves it, by row of llmscale.layout.rules.UNPROVEN.
NOT_PROVEN: dict[tuple[str, ...], Callable[[Model, L], bool]] = {
    ("tensor", "whole_tensors"): lambda model, at: at.tensor > 1 and model.optimizer in ("muon", "adafactor"),
    ("expert", "whole_tensors"): lambda model, at: at.expert > 1 and model.optimizer in ("muon", "adafactor"),
}


def is_legal(model: Model, at: L, not_proven: tuple[tuple[str, ...], ...] = ()) -> bool:
    data = replicas(at)
    if data is None or any(NOT_PROVEN[row](model, at) for row in not_proven):
        return False
    shards = at.context * at.tensor if at.sequence_parallel else at.context
    return (
        all(even(share, data) for share in model.shares)
        and all(even(width, at.tensor) for width in (model.heads, *model.widths))
        and keys_meet_queries(model.heads, model.kv_heads, at.tensor, at.context)
        and all(even(length, shards) for length in model.lengths)
        and not (at.sequence_parallel and at.tensor < 2)
        and not (at.context > 1 and model.experts)
        and (at.pipeline == 1 or pipeline_is_legal(model, at))
        and (at.expert == 1 or experts_are_legal(model, at, data))
    )


def pipeline_is_legal(model: Model, at: L) -> bool:
    stages = Counter(layer * at.pipeline // model.layers for layer in range(model.layers))
    return (
        at.zero_stage == 1
        and not model.two_stacks
        and not model.experts
        and at.context == 1
        and len(stages) == at.pipeline
    )


def experts_are_legal(model: Model, at: L, data: int) -> bool:
    return at.zero_stage in (1, 2) and model.experts > 0 and even(model.experts, at.expert) and even(data, at.expert)


def replicas(at: L) -> int | None:
    """The number of replicas with which the ranks are exactly the points of the grid."""
    for data in range(1, at.ranks + 1) if at.data is None else [at.data]:
        if at.pipeline * data * at.context * at.tensor == at.ranks:
            return data
    return None


@cache
def even(number: int, parts: int) -> bool:
    """Whether dealing out `number` things gives each of `parts` as many as the others, and at least one."""
    hands = {len(range(part, number, parts)) for part in range(parts)}
    return len(hands) == 1 and hands != {0}


@cache
def keys_meet_queries(heads: int, kv_heads: int, tensor: int, sequence: int) -> bool:
    """Whether query heads can be cut among ranks so that no key/value head is cut: the key/value heads that the ranks
    need are either dealt out evenly, or one for each rank. First among tensor-parallel ranks, then, within each of
    them, among sequence-parallel ones."""
    needs = {query: query * kv_heads // heads for query in range(heads)}
    return cuts_well(list(range(heads)), needs, tensor) and all(
        cuts_well(queries, needs, sequence) for queries in runs(list(range(heads)), tensor)
    )


def cuts_well(queries: list[int], needs: dict[int, int], parts: int) -> bool:
    if not even(len(queries), parts):
        return False
    sets = [{needs[query] for query in run} for run in runs(queries, parts)]
    one_each = all(len(needed) == 1 for needed in sets)
    apart = all(not a & b for a, b in itertools.combinations(sets, 2)) and len({len(needed) for needed in sets}) == 1
    return one_each or apart


def runs(items: list[int], parts: int) -> list[list[int]]:
    size = len(items) // parts
    return [items[part * size : (part + 1) * size] for part in range(parts)]


def layouts_within(ranks: int, stages: tuple[int, ...] = (1, 2, 3)) -> Iterator[L]:
    """Every layout of up to so many ranks whose sizes multiply to them, legal or not."""
    sizes = range(1, ranks + 1)
    for world, pipeline, sequence, tensor in itertools.product(sizes, repeat=4):
        inner = pipeline * sequence * tensor
        if world % inner:
            continue
        for expert, stage, recompute in itertools.product(sizes, stages, ("none", "block", "selective")):
            for compiled, shared in itertools.product((False, True), repeat=2):
                yield L(
                    world, pipeline, world // inner, sequence, tensor, shared, expert, stage, compiled, recompute
                )  # fmt: skip


def changed(before: L, after: L) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, with both values; a data-parallel size that was left to the others is none of them."""
    pairs = zip(L._fields, before, after, strict=True)
    return {
        field: (old, new)
        for field, old, new in pairs
        if old != new and not (field == "data" and None in (old, new))
    }  # fmt: skip
