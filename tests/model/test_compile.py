"""torch.compile of the blocks of every family: no graph break, equal blocks share a graph, and nothing changes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from llmscale import families
from llmscale.config import ModelConfig
from llmscale.model import Transformer
from llmscale.parallel.init import build

VOCAB, LENGTH, LAYERS = 50, 12, 10
"""More layers than the compiler's limit of recompilations (8)."""

SIZES: dict[str, Any] = {
    "layers": LAYERS, "hidden_size": 32, "heads": 4, "kv_heads": 2, "ffn_size": 40, "max_positions": 16,
    "vocab_multiple": 16,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "t5": {"encoder_layers": LAYERS},
    "t5_v1_1": {"encoder_layers": LAYERS},
    "qwen3_moe": {"experts": {"count": 8, "per_token": 2}},
    "deepseek_v3": {
        "kv_heads": None,
        "latent": {"query_rank": 24, "key_value_rank": 16, "rotary_size": 4, "plain_size": 6, "value_size": 8},
        "experts": {"count": 8, "per_token": 2, "scoring": "sigmoid", "groups": 2, "shared": 1, "first_dense": 1},
    },
}
# Kinds of blocks of each family: the graphs that the compiler has to make.
GRAPHS = {
    "gpt3": 2,  # global and local
    "gpt_neo": 2,
    "t5": 2,  # encoder and decoder
    "t5_v1_1": 2,
    "mt5": 2,
    "smollm3": 2,  # with and without rotary positions
    "pangu_alpha": 2,  # the query layer
    "wu_dao": 2,  # dense and experts
    "deepseek_v3": 2,
    "gemma3_text": 2,  # global and local
    "modernbert": 3,  # the first has no norm; global and local
}


def small(name: str, **changes: Any) -> ModelConfig:
    """A family's model of ten narrow layers, local ones with a window below the length."""
    window = {"window": 4} if families.preset(name).get("window") else {}
    return ModelConfig(**{"family": name, **SIZES, **window, **CHANGES.get(name, {}), **changes})


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: Transformer, padded: bool = False) -> Tensor:
    """A loss that reads all blocks; with `padded` some tokens are padding."""
    ids, targets = draw(1, 3, LENGTH), draw(2, 3, LENGTH)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [9]]) if padded else None
    match model.config.architecture:
        case "decoder":
            output = model(ids, segment_ids=(torch.arange(LENGTH) // 5).expand(3, -1) if padded else None)
        case "encoder":
            output = model(ids, padding_mask=real)
        case _:
            output = model(ids, encoder_inputs=draw(3, 3, LENGTH), encoder_padding_mask=real)
    loss = model.head(output.hidden, targets)
    return loss if output.router_loss is None else loss + output.router_loss.sum()


def gradients_of(model: Transformer, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def compile_whole(model: Transformer) -> CompileCounterWithBackend:
    """Compile each block with a counter of graphs; a graph break raises."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for stack in (model, model.encoder):
        for block in [] if stack is None else stack.blocks:
            block.compile(backend=counter, fullgraph=True)
    return counter


# One of each kind of architecture in the fast tests; compiling takes long.
FAST = ("gpt2", "bert", "t5_v1_1", "qwen3_moe")


@pytest.mark.parametrize("padded", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in families.NAMES]
)
def test_blocks_compile_whole_and_equal_ones_once(name: str, padded: bool) -> None:
    model = build(small(name), VOCAB, seed=1)
    expected = loss_of(model, padded)
    gradients = gradients_of(model, expected)
    counter = compile_whole(model)
    loss = loss_of(model, padded)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients_of(model, loss), gradients, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == GRAPHS.get(name, 1)
    loss_of(model, padded)
    assert counter.frame_count == GRAPHS.get(name, 1), "a second pass compiled anew"
