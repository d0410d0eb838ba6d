"""transformers' models as independent references: small random ones, and their tensors under our names."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from llmscale.config import ModelConfig
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
    return _from_gpt2(tensors) if name == "gpt2" else _from_llama(tensors)


def _from_gpt2(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {
        "embedding.weight": tensors["transformer.wte.weight"],
        "positions.weight": tensors["transformer.wpe.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = tensors[f"transformer.ln_f.{kind}"]
        for layer in range(LAYERS):
            mine, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            found[f"{mine}.attention_norm.{kind}"] = tensors[f"{theirs}.ln_1.{kind}"]
            found[f"{mine}.feed_forward_norm.{kind}"] = tensors[f"{theirs}.ln_2.{kind}"]
            # Conv1D keeps (in, out), and the three projections side by side.
            parts = tensors[f"{theirs}.attn.c_attn.{kind}"].transpose(0, -1).chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                found[f"{mine}.attention.{part}.{kind}"] = tensor
            found[f"{mine}.attention.output.{kind}"] = tensors[f"{theirs}.attn.c_proj.{kind}"].transpose(0, -1)
            found[f"{mine}.feed_forward.up.{kind}"] = tensors[f"{theirs}.mlp.c_fc.{kind}"].transpose(0, -1)
            found[f"{mine}.feed_forward.down.{kind}"] = tensors[f"{theirs}.mlp.c_proj.{kind}"].transpose(0, -1)
    return found


def _from_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renames = {
        "model.embed_tokens": "embedding",
        "model.norm": "norm",
        "lm_head": "head",
        "model.layers": "blocks",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feed_forward_norm",
        "self_attn.q_proj": "attention.query",
        "self_attn.k_proj": "attention.key",
        "self_attn.v_proj": "attention.value",
        "self_attn.o_proj": "attention.output",
        "mlp.gate_proj": "feed_forward.gate",
        "mlp.up_proj": "feed_forward.up",
        "mlp.down_proj": "feed_forward.down",
    }
    found = {}
    for theirs, tensor in tensors.items():
        mine = theirs
        for old, new in renames.items():
            mine = mine.replace(old, new)
        found[mine] = tensor
    return found


def tokens(batch: int = 3, length: int = CONTEXT, seed: int = 7) -> Tensor:
    """(batch, length) random token ids."""
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
