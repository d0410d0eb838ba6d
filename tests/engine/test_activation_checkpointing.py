"""Activation recomputation: not a bit of the gradients changes, and less is kept."""

import shutil
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmscale.config import RunConfig
from llmscale.distributed.process_group import join, leave, read_world
from llmscale.engine import engine as engine_module
from llmscale.engine.activation_checkpointing import apply_activation_checkpointing
from llmscale.model import Dropout, Transformer
from llmscale.parallel.init import build
from tests.engine.cases import STEPS, Figures, case_config, one_step, open_engine, train_on_rank
from tests.model.test_compile import VOCAB, compile_whole, draw, gradients_of, small
from tests.ranks import run_ranks

RATES = {"dropout": 0.1, "attention_dropout": 0.1}
MODES = ["block", "selective"]


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that were made under it and still live, but for a model's parameters."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    @property
    def total(self) -> int:
        return sum(self._sizes.values())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._sizes and storage._cdata not in self._parameters:
                    self._sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, storage._cdata)
        return result


def model_of(name: str, mode: str, draws: bool = False, **changes: Any) -> Transformer:
    model = build(small(name, layers=4, **changes), VOCAB, seed=1)
    apply_activation_checkpointing(model, mode, draws)
    return model


def loss_of(model: Transformer, layout_free: bool = True) -> Tensor:
    ids, targets = draw(1, 3, 12), draw(2, 3, 12)
    source = {"encoder_inputs": draw(3, 3, 12)} if model.encoder is not None else {}
    dropout = Dropout.of(0, torch.arange(3), layout_free) if model.config.attention_dropout else None
    output = model(ids, **source, dropout=dropout)
    loss = model.head(output.hidden, targets)
    return loss if output.router_loss is None else loss + output.router_loss.sum()


@pytest.mark.parametrize("rates", [{}, RATES], ids=["", "dropout"])
@pytest.mark.parametrize("name", ["gpt2", "t5", "bert", "gptj", "wu_dao", "gpt3", "pangu_alpha"])
def test_gradients_stay_to_the_bit_and_less_is_kept(name: str, rates: dict[str, float]) -> None:
    found = {}
    for mode in ["none", *MODES]:
        model = model_of(name, mode, **rates)
        with LiveBytes(model) as live:
            loss = loss_of(model)
            kept = live.total
        found[mode] = (loss.item(), gradients_of(model, loss), kept)
    for mode in MODES:
        assert found[mode][0] == found["none"][0]
        for one, other in zip(found[mode][1], found["none"][1], strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
    assert found["block"][2] < found["selective"][2] < found["none"][2]
    # The experts' loss and the head's gradient are kept in any case.
    assert found["block"][2] < (0.75 if name == "wu_dao" else 0.6) * found["none"][2]


def test_block_keeps_nothing_of_a_layer_but_its_input() -> None:
    kept = []
    for layers in (4, 8):
        model = build(small("gpt2", layers=layers), VOCAB, seed=1)
        apply_activation_checkpointing(model, "block", draws=False)
        with LiveBytes(model) as live:
            loss = loss_of(model)
            kept.append(live.total)
        del loss
    assert kept[1] - kept[0] == 4 * 3 * 12 * 32 * 4, "a layer keeps more than (B, T, hidden_size) in fp32"


def test_names_and_values_of_parameters_stay() -> None:
    plain, changed = (dict(model_of("t5", mode).named_parameters()) for mode in ("none", "block"))
    assert list(plain) == list(changed)
    assert all(torch.equal(plain[name], changed[name]) for name in plain)


@pytest.mark.parametrize("mode", MODES)
def test_what_kernels_draw_is_drawn_again(mode: str) -> None:
    gradients = []
    for how in ("none", mode):
        model = model_of("gpt2", how, draws=True, **RATES)
        torch.manual_seed(5)
        gradients.append(gradients_of(model, loss_of(model, layout_free=False)))
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("rates", [{}, RATES], ids=["", "dropout"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["gpt2", "t5", "wu_dao"])
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_recompute_too(name: str, mode: str, rates: dict[str, float]) -> None:
    """One graph for equal blocks, the gradients of eager mode, and less saved for the backward pass."""
    model = model_of(name, "none", **rates)
    expected = loss_of(model)
    gradients = gradients_of(model, expected)
    saved = {}
    for how in ("none", mode):
        model = model_of(name, how, **rates)
        counter = compile_whole(model)
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(model)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients_of(model, loss), gradients, rtol=1e-4, atol=1e-5)
        assert counter.frame_count == {"gpt2": 1, "t5": 2, "wu_dao": 2}[name]
        saved[how] = sum(sizes.values())
    assert saved[mode] < saved["none"]


MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "dropout": {"model__dropout": 0.2, "model__attention_dropout": 0.2},
    "t5": {"model__family": "t5", "model__encoder_layers": 2},
    "experts": {
        "model__family": "mixtral", "model__experts": "{count: 4, per_token: 2}", "model__hidden_size": 24,
        "model__ffn_size": 40,
    },
}  # fmt: skip


def layouts(mode: str, stage: int) -> list[RunConfig]:
    return [
        case_config(
            optimizer__name="sgd",
            train__micro_batch=2,
            engine__zero_stage=stage,
            engine__activation_checkpointing=mode,
            **model,
        )
        for model in MODELS.values()
    ]


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_training_stays_to_the_bit(stage: int) -> None:
    plain, *others = (run_ranks(2, train_on_rank, layouts(mode, stage)) for mode in ["none", *MODES])
    for found in others:
        assert found == plain


@pytest.mark.slow
def test_training_at_zero_3_stays_to_the_bit_with_weights_apart() -> None:
    """Also where no weight is small enough to be on all ranks, as those of a test would be."""
    for train in (train_on_rank, train_apart_on_rank):
        plain, *others = (run_ranks(2, train, layouts(mode, 3)) for mode in ["none", *MODES])
        for found in others:
            assert found == plain


def train_apart_on_rank(configs: list[RunConfig]) -> list[list[Figures]]:
    """What `train_on_rank` gives, with every weight gathered only while it is used, and given back after each step."""
    plain = engine_module.deepspeed_config

    def apart(*arguments: Any) -> dict[str, Any]:
        config = plain(*arguments)
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
        return config

    engine_module.deepspeed_config = apart
    join(read_world("cpu"))
    found = []
    for config in configs:
        engine, grid = open_engine(config)
        figures = []
        for step in range(STEPS):
            figures.append(one_step(engine, grid, step))
            assert all(parameter.numel() == 0 for _, parameter in engine.named), "weights stayed gathered"
        found.append(figures)
    leave()
    return found


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPU")
@pytest.mark.parametrize("mode", ["none", "block"])
def test_code_of_the_compiler_drops_and_recomputes_the_same(mode: str) -> None:
    """torch's real backend through the engine, whose generated code must hash as eager mode does."""
    names = ["dropout", "experts"]
    plain = [case for name, case in zip(MODELS, layouts("none", 1), strict=True) if name in names]
    cases = [case for name, case in zip(MODELS, layouts(mode, 1), strict=True) if name in names]
    cases = [case.model_copy(update={"engine": case.engine.model_copy(update={"compile": True})}) for case in cases]
    expected = run_ranks(2, train_on_rank, plain)
    for rank, reference in zip(run_ranks(2, train_on_rank, cases), expected, strict=True):
        for found, figures in zip(rank, reference, strict=True):
            assert found == [pytest.approx(row, rel=1e-5) for row in figures]
