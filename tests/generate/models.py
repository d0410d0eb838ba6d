"""Small random models of every family, and prompts for them."""

import torch

from llmscale.config import ModelConfig
from llmscale.generate.decode import decode
from llmscale.generate.prompts import Context
from llmscale.generate.settings import Settings
from llmscale.model import Transformer
from llmscale.parallel.init import build
from tests.model.references import VOCAB

SIZES = {"layers": 3, "hidden_size": 64, "heads": 4, "max_positions": 40, "vocab_multiple": 16, "init_std": 0.3}
FAMILIES = {
    name: {"family": name}
    for name in ("gpt2", "gpt3", "gpt_neo", "gptj", "gpt_neox", "t5", "t5_v1_1", "pangu_alpha", "wu_dao",
                 "megatron_nlg", "llama", "qwen3", "olmo2", "granite", "falcon", "opt", "phi", "glm4", "gemma",
                 "gemma3_text", "mistral", "mixtral", "qwen3_moe", "olmoe", "smollm3", "bloom")
}  # fmt: skip
OTHERS = {
    "deepseek_v3": {
        "family": "deepseek_v3",
        "latent": {"query_rank": 24, "key_value_rank": 16, "rotary_size": 8, "plain_size": 12, "value_size": 10},
        "experts": {
            "count": 6, "per_token": 2, "ffn_size": 32, "scoring": "sigmoid", "groups": 3, "groups_per_token": 2,
            "scale": 2.0, "shared": 1, "first_dense": 1,
        },
    },
    "alibi": {"positions": "alibi"},
    "sinusoidal": {"positions": "sinusoidal"},
    "local_alibi": {"positions": "alibi", "attention_pattern": ["global", "local"], "window": 5},
    "llama3_scaling": {
        "family": "llama",
        "kv_heads": 2,
        "rotary_scaling": {"kind": "llama3", "factor": 4, "original_positions": 16},
    },
    "post_norm_seq2seq": {"architecture": "encoder_decoder", "norm_order": "post", "activation": "relu"},
    "windowed_t5": {"family": "t5", "attention_pattern": ["local", "global"], "window": 6},
}  # fmt: skip
MODELS = {**FAMILIES, **OTHERS}


def config_of(name: str) -> ModelConfig:
    """A family's parts at a small size; windows are shorter than the texts, experts few."""
    options = {**SIZES, **MODELS[name]}
    plain = ModelConfig(**options)
    if plain.window is not None:
        options["window"] = min(plain.window, 6)
    if plain.experts is not None:
        options["experts"] = {**plain.experts.model_dump(), "count": 6, "per_token": 2}
    return ModelConfig(**options)


def model_of(name: str, vocab: int = VOCAB) -> Transformer:
    """With random weights everywhere, so that a bias or norm that is left out shows."""
    model = build(config_of(name), vocab, seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def contexts_for(model: Transformer, lengths: tuple[int, ...] = (7, 2, 11, 4), prefix: bool = False) -> list[Context]:
    """Unequal prompts of other tokens each."""
    rows = [[(13 * row + 7 * place + 5) % VOCAB for place in range(length)] for row, length in enumerate(lengths)]
    if model.encoder is not None:
        return [Context([0], row) for row in rows]
    return [Context(row, prefix=prefix) for row in rows]


def greedy(model: Transformer, contexts: list[Context], settings: Settings, end: int | None = 1) -> list[list[int]]:
    """New tokens of each context, up to the token `end`."""
    found: list[list[int]] = [[] for _ in contexts]

    def ended(number: int, token: int) -> bool:
        if token != end:
            found[number].append(token)
        return token == end

    for _ in decode(model, contexts, settings, ended):
        pass
    return found
