"""What a rank holds: at ZeRO 3 never the whole model, at the start, at load and in training."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.memory import PARTS, all_tensor_bytes, before_update, peak_bytes, state_bytes
from data_pipeline.base.errors import UserError
from llmscale.checkpoint import newest_intact
from llmscale.config import RunConfig
from llmscale.distributed.process_group import World, join, leave, read_world
from llmscale.engine import engine as engine_module
from llmscale.parallel.grid import RankGrid
from llmscale.train.memory import require_memory
from llmscale.train.resume import restore
from tests.engine.cases import VOCAB, build, case_config, global_batch, one_step, open_engine, save_on_rank
from tests.ranks import run_ranks

SMALL: dict[str, Any] = {
    "model__layers": 6, "model__hidden_size": 256, "model__heads": 4, "model__kv_heads": 4, "model__ffn_size": 1024,
    "model__vocab_multiple": 8, "engine__param_persistence_threshold": 0, "engine__zero_stage": 3,
}  # fmt: skip
LARGE = SMALL | {"model__layers": 7, "model__hidden_size": 512, "model__ffn_size": 2048}


def sizes(config: RunConfig) -> tuple[int, int]:
    """Elements of the model and of its largest tensor."""
    found = [parameter.numel() for parameter in build(config).parameters()]
    return sum(found), max(found)


def test_a_machine_must_hold_what_its_ranks_keep_of_the_weights() -> None:
    """Four ranks of one machine: all of the weights four times, or at ZeRO 3 once; below fp32 masters too."""
    elements = sizes(case_config(**SMALL))[0]
    world, grid = World(0, 4, 0, 4, torch.device("cpu")), RankGrid(data=4)
    for stage, dtype, each in ((1, "fp32", 4.0), (3, "fp32", 1.0), (2, "bf16", 3.0), (3, "bf16", 1.5)):
        config = case_config(**SMALL | {"engine__zero_stage": stage, "engine__dtype": dtype})
        needed = int(4 * each * elements)
        require_memory(config, VOCAB, grid, world, memory=needed + 4)
        with pytest.raises(UserError, match=r"B parameters, .* of weights for each rank of this machine \(4\)"):
            require_memory(config, VOCAB, grid, world, memory=needed - 4)
        # Whoever writes texts has all weights besides, where they are cut.
        written = needed + 4 * elements * (4 if dtype == "fp32" else 2) * (stage == 3)
        require_memory(config, VOCAB, grid, world, memory=written + 4, writes=True)
        with pytest.raises(UserError, match="whole model" if stage == 3 else "B parameters"):
            require_memory(config, VOCAB, grid, world, memory=written - 4, writes=True)


def start_on_rank(config: RunConfig, folder: Path | None) -> dict[str, int]:
    """The most that cutting the weights takes, and the whole start, what it leaves, and the most that a load takes."""
    join(read_world("cpu"))
    before, cut = all_tensor_bytes(), engine_module.partition
    found = {}

    def measured(*args: Any) -> None:
        found["cut"], _ = peak_bytes(lambda: cut(*args))

    engine_module.partition = measured
    found["start"], (engine, _) = peak_bytes(lambda: open_engine(config))
    engine_module.partition = cut
    found |= {"all": all_tensor_bytes() - before, **state_bytes(engine)}
    if folder is not None:
        checkpoint = newest_intact(folder)
        found["load"], _ = peak_bytes(lambda: restore(engine, checkpoint))
    leave()
    return found


def test_the_start_and_a_load_hold_a_part_and_one_tensor(tmp_path: Path) -> None:
    config = case_config(**SMALL)
    elements, largest = sizes(config)
    assert largest < elements / 16
    run_ranks(1, save_on_rank, case_config(**SMALL | {"engine__zero_stage": 1}), tmp_path, 0, 0)
    for found in run_ranks(4, start_on_rank, config, tmp_path):
        share, tensor = 4 * elements / 4, 4 * largest
        assert found["weights"] == pytest.approx(share, rel=0.01)
        assert found["masters"] == 0, "fp32 weights are their own masters"
        assert found["moments"] == pytest.approx(2 * share, rel=0.01)
        assert found["gradients"] == pytest.approx(share, rel=0.01)
        assert found["all"] == pytest.approx(4 * share, rel=0.02)
        # A block of values is drawn from its beginning, and this rank's part of it is copied twice.
        assert found["cut"] < share + 1.5 * tensor
        assert found["start"] < 4 * share + tensor
        assert found["load"] < 2 * tensor


def steps_on_rank(configs: list[RunConfig]) -> list[int]:
    """The most that the third step takes beyond what this rank holds at its start."""
    join(read_world("cpu"))
    found = []
    for config in configs:
        engine, grid = open_engine(config)
        for step in range(2):
            one_step(engine, grid, step)
        found.append(peak_bytes(partial(one_step, engine, grid, 2))[0])
        del engine
    leave()
    return found


@pytest.mark.slow
def test_few_live_weights_and_small_buckets_bound_a_step() -> None:
    """By default all of a small model is kept gathered, and its gradients are reduced at once."""
    settings = SMALL | {"train__micro_batch": 1}
    few = settings | {"engine__max_live_parameters": 0, "engine__bucket_elements": 300_000}
    whole = 4 * sizes(case_config(**settings))[0]
    for usual, bounded in run_ranks(4, steps_on_rank, [case_config(**settings), case_config(**few)]):
        assert usual > 2 * whole
        assert bounded < 0.45 * whole


def train_on_rank(config: RunConfig) -> dict[str, int]:
    """What a rank holds when its gradients are complete, in the second step."""
    join(read_world("cpu"))
    engine, grid = open_engine(config)
    one_step(engine, grid, 0)
    found = before_update(engine, lambda: state_bytes(engine), lambda: one_step(engine, grid, 1))
    leave()
    return found[-1]


def plain_bytes(config: RunConfig) -> int:
    """The same of plain torch in one process: weights, gradients and both moments, counted."""
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for step in range(2):
        batch = global_batch(step)
        logits = model.head(model(batch.inputs).hidden)[..., :VOCAB]
        nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        if step == 0:
            optimizer.step()
            optimizer.zero_grad()
    tensors = [each for parameter in model.parameters() for each in (parameter, parameter.grad)]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor is not None)


def test_a_rank_of_four_holds_a_quarter_of_the_model_state() -> None:
    config = case_config(**LARGE)
    elements, _ = sizes(config)
    assert elements >= 20_000_000
    whole = plain_bytes(config)
    assert whole == pytest.approx(16 * elements, rel=1e-4)
    for found in run_ranks(4, train_on_rank, config):
        held = sum(found[part] for part in PARTS if part != "buckets")
        assert held <= 0.27 * whole, f"{held / whole:.1%}: {found}"
