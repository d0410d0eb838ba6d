"""A prefix that is read in both directions: which tokens depend on which."""

import torch

from llmscale.config import ModelConfig
from llmscale.parallel.init import build

MODEL = build(ModelConfig(layers=2, hidden_size=32, heads=2, max_positions=16), 50, seed=1)


def test_a_prefix_sees_itself_and_the_rest_sees_what_comes_before() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(50, (1, 12), generator=draw)
    prefix = torch.tensor([5])
    with torch.no_grad():
        whole = MODEL(tokens, prefix_lengths=prefix).hidden
        for changed in range(12):
            other = tokens.clone()
            other[0, changed] = (other[0, changed] + 1) % 50
            differs = (MODEL(other, prefix_lengths=prefix).hidden - whole).abs().amax(-1)[0] > 1e-6
            sees = [changed <= place or (changed < 5 and place < 5) for place in range(12)]
            assert differs.tolist() == sees


def test_a_prefix_of_one_token_is_causal() -> None:
    tokens = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prefixed = MODEL(tokens, prefix_lengths=torch.ones(3, dtype=torch.int64)).hidden
        assert torch.allclose(prefixed, MODEL(tokens).hidden, atol=1e-6)
