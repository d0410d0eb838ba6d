"""Options of blocks and heads beside explicit computations and torch's own layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmscale.config import ModelConfig
from llmscale.model.block import Block
from llmscale.model.context import Context
from llmscale.parallel.init import build
from tests.model.test_compile import VOCAB, draw

WIDTH, HEADS, LENGTH = 32, 4, 9


def config(**changes: object) -> ModelConfig:
    return ModelConfig(
        **{
            "layers": 3, "hidden_size": WIDTH, "heads": HEADS, "max_positions": 16, "vocab_multiple": 16,
            "ffn_size": 40, "init_std": 0.2, **changes,
        }
    )  # fmt: skip


def random_(module: nn.Module) -> nn.Module:
    """The module in fp64 with values that leave none of its parts near the identity."""
    draw_ = torch.Generator().manual_seed(3)
    for parameter in module.double().parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=draw_) * 0.3 + (parameter.dim() == 1))
    return module


def hidden(seed: int = 0) -> Tensor:
    return torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CONTEXT = Context(rotary={"global": None}, masks={"global": None})


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_blocks_are_torch_s_encoder_layers(order: str, activation: str) -> None:
    block = random_(Block(config(architecture="encoder", norm_order=order, activation=activation), 0, causal=False))
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 40, dropout=0, activation=activation, batch_first=True, norm_first=order == "pre",
        dtype=torch.float64,
    )  # fmt: skip
    own = dict(block.named_parameters())
    names = {
        "self_attn.out_proj": "attention.output", "linear1": "feed_forward.up", "linear2": "feed_forward.down",
        "norm1": "attention_norm", "norm2": "feed_forward_norm",
    }  # fmt: skip
    state = {f"{a}.{kind}": own[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        parts = [own[f"attention.{part}.{kind}"] for part in ("query", "key", "value")]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
    theirs.load_state_dict(state)
    found, loss = block(hidden(), CONTEXT)
    assert loss is None
    torch.testing.assert_close(found, theirs(hidden()))


@pytest.mark.parametrize("shared", [True, False])
def test_parallel_residual_adds_both_to_the_same_input(shared: bool) -> None:
    block = random_(Block(config(parallel_residual=True, shared_norm=shared), 0, causal=True))
    x = hidden()
    first = F.layer_norm(x, (WIDTH,), block.attention_norm.weight, block.attention_norm.bias)
    second = first
    if not shared:
        second = F.layer_norm(x, (WIDTH,), block.feed_forward_norm.weight, block.feed_forward_norm.bias)
    up, down = block.feed_forward.up, block.feed_forward.down
    inner = F.linear(F.gelu(F.linear(second, up.weight, up.bias), approximate="tanh"), down.weight, down.bias)
    found, _ = block(x, CONTEXT)
    torch.testing.assert_close(found, x + attended(block.attention, first, first) + inner)
    assert (block.feed_forward_norm is None) == shared


def attended(attention: nn.Module, asking: Tensor, told: Tensor) -> Tensor:
    """Causal attention of several heads, one head at a time."""
    size = WIDTH // HEADS
    query, key, value = attention.query(asking), attention.key(told), attention.value(told)
    mixed = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
        mixed.append(scores.softmax(-1) @ value[..., part])
    return F.linear(torch.cat(mixed, dim=-1), attention.output.weight, attention.output.bias)


def test_the_query_layer_asks_by_position() -> None:
    """PanGu-alpha, section 2.2.2: the top layer's queries are embeddings of positions; its input is after the norm."""
    model = random_(build(config(query_layer=True), VOCAB, seed=1))
    ids = draw(1, 2, LENGTH)
    x = model.embedding(ids) + model.positions.weight[:LENGTH]
    for block in model.blocks[:-1]:
        x, _ = block(x, CONTEXT)
    x = F.layer_norm(x, (WIDTH,), model.norm.weight, model.norm.bias)
    top = model.blocks[-1]
    normed = F.layer_norm(x, (WIDTH,), top.attention_norm.weight, top.attention_norm.bias)
    asking = model.queries.weight[:LENGTH].expand(2, -1, -1)
    x = x + attended(top.attention, asking, normed)
    normed = F.layer_norm(x, (WIDTH,), top.feed_forward_norm.weight, top.feed_forward_norm.bias)
    inner = F.gelu(top.feed_forward.up(normed), approximate="tanh")
    expected = x + top.feed_forward.down(inner)
    torch.testing.assert_close(model(ids).hidden, expected)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_head_transform_and_bias(activation: str) -> None:
    """BERT: dense, activation, norm, then the embedding's transpose and a bias; also as a loss."""
    model = random_(
        build(
            config(architecture="encoder", head_transform=True, head_bias=True, activation=activation, norm_eps=1e-12),
            VOCAB,
            seed=1,
        )
    )
    head, x = model.head, hidden()
    inner = getattr(F, activation)(x @ head.dense.weight.T + head.dense.bias)
    normed = (inner - inner.mean(-1, keepdim=True)) / inner.var(-1, keepdim=True, unbiased=False).sqrt()
    logits = (normed * head.norm.weight + head.norm.bias) @ model.embedding.weight.T + head.bias
    torch.testing.assert_close(head(x)[..., :VOCAB], logits[..., :VOCAB])
    targets = draw(4, 2, LENGTH)
    expected = F.cross_entropy(logits[..., :VOCAB].flatten(0, 1), targets.flatten(), reduction="sum")
    loss = head(x, targets)
    torch.testing.assert_close(loss, expected)
    names, values = zip(*head.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, values)
    for name, found, wanted in zip(names, gradients, torch.autograd.grad(expected, values), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


def test_a_scaled_head_divides_by_the_root_of_the_width() -> None:
    model = random_(build(config(scaled_head=True), VOCAB, seed=1))
    expected = (hidden() / math.sqrt(WIDTH)) @ model.embedding.weight.T
    torch.testing.assert_close(model.head(hidden())[..., :VOCAB], expected[..., :VOCAB])


def test_the_next_sentence_head_has_a_pooler() -> None:
    model = random_(build(config(architecture="encoder", token_types=2, next_sentence=True), VOCAB, seed=1))
    pooler, classifier = model.next_sentence.pooler, model.next_sentence.classifier
    x = hidden()
    expected = torch.tanh(x[:, 0] @ pooler.weight.T + pooler.bias) @ classifier.weight.T + classifier.bias
    torch.testing.assert_close(model.next_sentence(x[:, 0]), expected)
    assert expected.shape == (2, 2)


def test_token_types_and_embedding_norm() -> None:
    """BERT's embedding: token, position and type added, then normed; type 0 where none is given."""
    model = random_(build(config(architecture="encoder", token_types=2, embedding_norm=True), VOCAB, seed=1))
    ids, types = draw(1, 2, LENGTH), draw(2, 2, LENGTH) % 2
    for given in (None, types):
        rows = torch.zeros_like(ids) if given is None else given
        total = model.embedding(ids) + model.positions.weight[:LENGTH] + model.token_types.weight[rows]
        x = F.layer_norm(total, (WIDTH,), model.embedding_norm.weight, model.embedding_norm.bias)
        for block in model.blocks:
            x, _ = block(x, CONTEXT)
        expected = F.layer_norm(x, (WIDTH,), model.norm.weight, model.norm.bias)
        torch.testing.assert_close(model(ids, token_types=given).hidden, expected)


def test_experts_refuse_widths_that_the_grouped_product_cannot_read() -> None:
    with pytest.raises(ValueError, match=r"hidden_size is 36 and the experts' ffn_size 40; make both multiples of 8"):
        config(hidden_size=36, experts={"count": 4})
    with pytest.raises(ValueError, match=r"hidden_size is 32 and the experts' ffn_size 20; make both multiples of 8"):
        config(experts={"count": 4, "ffn_size": 20})
