"""Families and layouts to compare with one process: all legal ones, and few that have every pair of settings."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

from llmscale.config import RunConfig, load_config, parse_config
from llmscale.layout import Layout as Shape
from llmscale.layout import legal_layouts
from llmscale.layout.text import LayoutText, parse_layout
from tests.systems.published import TWINS

SIZES = (2, 4, 8)
"""Numbers of ranks."""
FIELDS = ("pipeline", "data", "context", "tensor", "sequence_parallel", "expert", "zero_stage")
"""What varies between layouts."""
SHORT = {"pipeline": "pp", "data": "dp", "context": "cp", "tensor": "tp", "expert": "ep", "zero_stage": "zero"}
# Twins are as small as they can be for one process; so that more ranks can share them, some have more heads or layers.
WIDER = {
    "gpt3_175b": ("model.heads=8", "model.layers=4"),
    "gpt_j_6b": ("model.heads=4", "model.hidden_size=256"),
    "gpt_neo_2_7b": ("model.heads=4",),
    "gpt_neox_20b": ("model.heads=4", "model.layers=3"),
    "llama3_8b": ("model.kv_heads=2",),
    "t5_base": ("model.heads=4",),
    "t5_11b": ("model.ffn_size=256",),
}
FAMILIES = tuple(sorted(path.stem for path in TWINS.glob("*.yaml")))
DISTINCT = tuple(name for name in FAMILIES if name not in ("bert_large", "t5_11b"))
"""Without those that only differ in size from another."""

TRIES = 8
"""Attempts to find few covering cases."""

Pairs = frozenset[tuple[tuple[str, object], tuple[str, object]]]
Case = tuple[str, str]
"""A family and a layout."""


@cache
def family(name: str) -> RunConfig:
    """A twin with a batch that eight ranks can share, and fewer files where it reads the standard library: each run
    lists them anew."""
    batch = ("train.global_batch=8", "train.batch_ramp=null", "train.micro_batch=2", "data.workers=0")
    optimizer = "optimizer={name: sgd}"  # as they are compared with; not all can be sharded
    twin = load_config(TWINS / f"{name}.yaml", [*batch, optimizer, *WIDER.get(name, ())])
    raw = twin.model_dump(mode="json")
    for source in raw["data"]["sources"]:
        source["paths"] = [path for path in source["paths"] if "**" not in path]
    return parse_config(raw)


@cache
def layouts(name: str) -> tuple[Shape, ...]:
    """Every legal layout of a family on `SIZES` ranks."""
    return tuple(shape for ranks in SIZES for shape in legal_layouts(family(name), ranks, FIELDS))


def text_of(shape: Shape) -> str:
    """A layout as `llmscale parity` takes it."""
    sizes = {SHORT[field]: getattr(shape, field) for field in FIELDS if field in SHORT}
    sizes["dp"] = shape.replicas
    parts = [f"{name}={size}" for name, size in sizes.items() if size != 1]
    return ",".join([*parts, *(["sequence_parallel=true"] if shape.sequence_parallel else [])]) or "dp=1"


def layout_of(case: Case) -> LayoutText:
    """What a case is run in."""
    return parse_layout(case[1])


def every_case() -> list[Case]:
    """All legal cases."""
    return [(name, text_of(shape)) for name in FAMILIES for shape in layouts(name)]


def covering_cases() -> list[Case]:
    """Few legal cases in which every pair of two settings' values occurs that occurs in a legal one.

    A family meets every setting and every ZeRO stage; settings meet each other at sizes of 1, 2 and more.
    """
    pairs = {
        (name, shape): _pairs(name, shape)
        for name in DISTINCT
        for shape in layouts(name)
        if shape.ranks > 1 and text_of(shape) != "dp=1"
    }
    tries = [_cover(pairs, random.Random(seed)) for seed in range(TRIES)]
    return [(name, text_of(shape)) for name, shape in min(tries, key=len)]


def _cover(pairs: dict[tuple[str, Shape], Pairs], chance: random.Random) -> list[tuple[str, Shape]]:
    """Greedy: each time the case with the rarest new pairs, give or take; then without those that are not needed."""
    every = frozenset().union(*pairs.values())
    often = Counter(pair for found in pairs.values() for pair in found)
    missing, chosen = every, []
    while missing:
        worth = {case: sum(often[pair] ** -0.5 for pair in found & missing) for case, found in pairs.items()}
        best = max(pairs, key=lambda case: worth[case] * (1 + 0.1 * chance.random()))
        missing -= pairs[best]
        chosen.append(best)
    for case in list(chosen):
        others = [other for other in chosen if other != case]
        if frozenset().union(*(pairs[other] for other in others)) == every:
            chosen = others
    return chosen


def _pairs(name: str, shape: Shape) -> Pairs:
    sizes: list[tuple[str, object]] = [
        (field, min(getattr(shape, field), 3)) for field in ("tensor", "context", "pipeline", "expert")
    ]
    values = [
        *sizes,
        ("zero", shape.zero_stage),
        ("data", shape.replicas > 1),
        ("sequence_parallel", shape.sequence_parallel),
    ]
    with_family = [(field, size != 1) for field, size in sizes]
    with_family += [("zero", shape.zero_stage), ("sequence_parallel", shape.sequence_parallel)]
    return frozenset(
        [(one, other) for place, one in enumerate(values) for other in values[place + 1 :]]
        + [(("family", name), value) for value in with_family]
    )
