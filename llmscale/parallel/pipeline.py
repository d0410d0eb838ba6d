"""Pipeline parallelism: what of a model one stage has, stripped from outside; names and layer numbers stay."""

from __future__ import annotations

from llmscale.config import ModelConfig
from llmscale.model import Transformer
from llmscale.model.heads import heads_of
from llmscale.parallel.grid import RankGrid
from llmscale.parallel.plans import stage_layers


def keep_stage(model: Transformer, grid: RankGrid) -> None:
    """Make of a model on the meta device this rank's stage of it, in place; nothing where there is one stage.

    The first stage has the embedding, and each head is where it says, on the last one. What several stages use
    (`shared_by_stages`), all of these have.
    """
    if grid.pipeline == 1:
        return
    model.held = stage_layers(model.depth, grid.pipeline)[grid.coordinate("pipeline")]
    for layer in range(model.depth):
        if layer not in model.held:
            # Not `del model.blocks[layer]`, which would renumber the others.
            delattr(model.blocks, str(layer))
    model.kinds = sorted({model.config.attention_kind(layer) for layer in model.held})
    absent: list[str] = []
    if not model.begins:
        absent += ["positions", "token_types", "embedding_norm"]
        if not (model.ends and model.config.shares_embedding):
            absent.append("embedding")
    if not model.ends:
        absent += ["norm", "queries"]
    stage = grid.coordinate("pipeline")
    absent += [head.attribute for head in heads_of(model.config) if head.stage % grid.pipeline != stage]
    for name in absent:
        setattr(model, name, None)


def shared_by_stages(config: ModelConfig, stages: int) -> dict[str, tuple[int, ...]]:
    """The stages that use a parameter, for each that several do, by name. The first of them owns it: the others send
    it their gradients and get the new values."""
    shared: dict[str, tuple[int, ...]] = {}
    if stages > 1 and config.shares_embedding:
        shared["embedding.weight"] = (0, stages - 1)
    if stages > 1 and config.positions == "relative":
        shared["relative_bias.table.weight"] = tuple(range(stages))
    return shared


def users(grid: RankGrid, stages: tuple[int, ...]) -> list[int]:
    """The ranks of this rank's pipeline that are of these stages, in their order."""
    return [rank for rank in grid.ranks("pipeline") if grid.coordinate("pipeline", rank) in stages]
