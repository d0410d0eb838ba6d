"""transformers' models as independent references: small random ones, and their tensors under our names."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmscale.config import ModelConfig
from llmscale.hugging_face.classes import table_of
from llmscale.hugging_face.weights import plan, shapes_of
from llmscale.model import Transformer
from llmscale.parallel.init import build

VOCAB, CONTEXT, LAYERS = 101, 24, 3

GPT2 = ModelConfig(layers=LAYERS, hidden_size=40, heads=4, max_positions=CONTEXT, vocab_multiple=16)
LLAMA = ModelConfig(
    layers=LAYERS,
    hidden_size=40,
    heads=4,
    kv_heads=2,
    head_size=12,
    ffn_size=72,
    max_positions=CONTEXT,
    vocab_multiple=16,
    positions="rotary",
    rotary_base=500.0,
    norm="rmsnorm",
    norm_eps=1e-6,
    activation="swiglu",
    bias=False,
    tied_embeddings=False,
)
CONFIGS = {"gpt2": GPT2, "llama": LLAMA}


def reference(name: str) -> nn.Module:
    """transformers' model of the same shape, with large random weights, so that no part of it is near the identity."""
    torch.manual_seed(5)
    config = CONFIGS[name]
    shared = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "attn_implementation": "eager"}
    if name == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                n_positions=CONTEXT,
                n_embd=config.hidden_size,
                n_layer=LAYERS,
                n_head=config.heads,
                resid_pdrop=0,
                embd_pdrop=0,
                attn_pdrop=0,
                **shared,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.ffn_channels,
                num_hidden_layers=LAYERS,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_head_count,
                head_dim=config.head_channels,
                max_position_embeddings=CONTEXT,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
                tie_word_embeddings=False,
                **shared,
            )
        )
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.15)
    return model.train()


def pair(name: str) -> tuple[Transformer, nn.Module]:
    """Our model and the reference with equal weights."""
    theirs = reference(name)
    ours = build(CONFIGS[name], VOCAB, seed=0)
    own = dict(ours.named_parameters())
    converted = renamed(name, theirs, lambda parameter: parameter.detach())
    assert set(converted) == set(own)
    with torch.no_grad():
        for key, value in converted.items():
            own[key][: len(value)] = value
    return ours, theirs


def renamed(name: str, model: nn.Module, read: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What `read` takes from each of the reference's parameters, under our names and in our orientation."""
    tensors = {key: read(parameter) for key, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for move in plan(table_of(name), CONFIGS[name], shapes_of(CONFIGS[name], VOCAB)):
        found.update(zip(move.ours, move.to_ours([tensors[key] for key in move.theirs]), strict=True))
    return found


def tokens(batch: int = 3, length: int = CONTEXT, seed: int = 7) -> Tensor:
    """(batch, length) random token ids."""
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
