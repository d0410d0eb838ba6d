"""transformers' models, small and with large random weights, and their tensors under our names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from llmscale import families
from llmscale.checkpoint.model import load_model
from llmscale.config import ModelConfig
from llmscale.hugging_face.classes import table_of
from llmscale.hugging_face.importing import import_directory
from llmscale.hugging_face.weights import plan, shapes_of
from llmscale.model import Transformer

VOCAB, CONTEXT, LAYERS, WIDTH = 300, 24, 3, 40
BYTES = Path("bytes")
"""Our byte tokenizer, whose 259 tokens fit the vocabulary."""
_GPT2 = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}
_SHARED = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
_LLAMA = {**_SHARED, "intermediate_size": 72, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_T5 = {
    "d_model": WIDTH, "d_kv": 12, "d_ff": 72, "num_layers": 2, "num_decoder_layers": LAYERS, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "n_positions": CONTEXT,
    "decoder_start_token_id": 0,
}  # fmt: skip
_LATENT = {
    **_SHARED, "num_key_value_heads": 4, "intermediate_size": 72, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "kv_lora_rank": 16, "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 8,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 500.0}
_YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 4.0, "beta_slow": 0.5,
}  # fmt: skip
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**_GPT2, "n_inner": 72}),
    "gpt2_unscaled": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**_GPT2, "scale_attn_weights": False, "activation_function": "relu", "tie_word_embeddings": False},
    ),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": 4, "window_size": 5,
            "attention_types": [[["local", "global"], 1], [["local"], 1]], "max_position_embeddings": CONTEXT,
        },
    ),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {
            **_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.4},
        },
    ),
    "gpt_neox_serial": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {
            **_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT, "use_parallel_residual": False,
            "attention_bias": False, "hidden_act": "gelu_new",
        },
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 48, "n_layer": LAYERS, "n_head": 6, "layer_norm_epsilon": 1e-3},
    ),
    "bloom_untied": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4, "tie_word_embeddings": False},
    ),
    "bert": (
        "BertForPreTraining",
        "BertConfig",
        {**_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT, "type_vocab_size": 3},
    ),
    "bert_masked": (
        "BertForMaskedLM",
        "BertConfig",
        {**_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT, "hidden_act": "gelu_new"},
    ),
    "roberta": (
        "RobertaForMaskedLM",
        "RobertaConfig",
        {**_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT + 1},
    ),
    "xlm_roberta": (
        "XLMRobertaForMaskedLM",
        "XLMRobertaConfig",
        {
            **_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT + 1, "type_vocab_size": 1,
            "layer_norm_eps": 1e-3,
        },
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "t5_v1_1": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "head_dim": 12, "rope_parameters": _ROPE}),
    "llama3": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_LLAMA, "rope_parameters": _LLAMA3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama_linear": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_LLAMA, "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0}},
    ),
    "llama_yarn": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_LLAMA, "rope_parameters": {**_ROPE, **_YARN}},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 12, "rope_parameters": _ROPE}),
    "qwen3_sliding": (
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**_LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    ),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", {**_T5, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_LLAMA, "rope_parameters": _ROPE}),
    "qwen2_sliding": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {
            **_LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "phi": (
        "PhiForCausalLM",
        "PhiConfig",
        {
            **_LLAMA, "num_attention_heads": 5, "num_key_value_heads": 1,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.8},
        },
    ),
    "phi_wide_heads": (
        "PhiForCausalLM",
        "PhiConfig",
        {
            **_LLAMA, "num_key_value_heads": None, "head_dim": 12, "hidden_act": "relu", "tie_word_embeddings": True,
            "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0},
        },
    ),
    "phi3": (
        "Phi3ForCausalLM",
        "Phi3Config",
        {**_LLAMA, "sliding_window": 6, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.4}},
    ),
    "starcoder2": (
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {**_LLAMA, "sliding_window": 7, "rope_parameters": _ROPE},
    ),
    "starcoder2_plain": (
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {**_LLAMA, "use_bias": False, "tie_word_embeddings": False, "hidden_act": "relu"},
    ),
    "granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            **_LLAMA, "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6,
            "logits_scaling": 3.0, "tie_word_embeddings": True, "rope_parameters": _ROPE,
        },
    ),
    "granite_biased": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {**_LLAMA, "attention_bias": True, "mlp_bias": True, "attention_multiplier": 0.4, "logits_scaling": 2},
    ),
    "glm": (
        "GlmForCausalLM",
        "GlmConfig",
        {
            **_LLAMA, "head_dim": 12, "attention_bias": False, "tie_word_embeddings": True,
            "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0},
        },
    ),
    "glm4": (
        "Glm4ForCausalLM",
        "Glm4Config",
        {**_LLAMA, "head_dim": 8, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.8}},
    ),
    "glm4_unbiased": (
        "Glm4ForCausalLM",
        "Glm4Config",
        {
            **_LLAMA, "num_key_value_heads": 1, "head_dim": 12, "attention_bias": False, "hidden_act": "relu",
            "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
        },
    ),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**_SHARED, "max_position_embeddings": CONTEXT}),
    "falcon_new": (
        "FalconForCausalLM",
        "FalconConfig",
        {
            **_SHARED, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 72, "bias": True,
            "rope_parameters": _ROPE, "max_position_embeddings": CONTEXT,
        },
    ),
    "falcon_one_norm": (
        "FalconForCausalLM",
        "FalconConfig",
        {
            **_SHARED, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
            "activation": "relu", "tie_word_embeddings": False,
        },
    ),
    "falcon_serial": (
        "FalconForCausalLM",
        "FalconConfig",
        {**_SHARED, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 72},
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_SHARED, "ffn_dim": 72, "max_position_embeddings": CONTEXT}),
    "opt_unbiased": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            **_SHARED, "ffn_dim": 72, "max_position_embeddings": CONTEXT + 3, "enable_bias": False,
            "activation_function": "gelu", "tie_word_embeddings": False,
        },
    ),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_LLAMA, "head_dim": 12, "rope_parameters": _ROPE}),
    "gemma_biased": (
        "GemmaForCausalLM",
        "GemmaConfig",
        {
            **_LLAMA, "num_key_value_heads": 1, "head_dim": 8, "attention_bias": True, "hidden_act": "gelu_python",
            "tie_word_embeddings": False, "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0},
        },
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_LLAMA, "head_dim": 12, "query_pre_attn_scalar": 10, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "gemma3_text_biased": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_LLAMA, "head_dim": 8, "attention_bias": True, "sliding_window": 7, "hidden_activation": "silu",
            "tie_word_embeddings": False,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {**_LLAMA, "rope_parameters": _ROPE}),
    "olmo2_biased": (
        "Olmo2ForCausalLM",
        "Olmo2Config",
        {
            **_LLAMA, "num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True,
            "hidden_act": "gelu", "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0},
        },
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {**_LLAMA, "no_rope_layer_interval": 2, "rope_parameters": _ROPE, "pad_token_id": 0},
    ),
    "smollm3_sliding": (
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {
            **_LLAMA, "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 6, "pad_token_id": 0,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"], "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": False,
        },
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_LLAMA, "head_dim": 12, "sliding_window": 6}),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**_LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2, "rope_parameters": _ROPE},
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **_LLAMA, "head_dim": 12, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
            "decoder_sparse_step": 2,
        },
    ),
    "qwen3_moe_normalized": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **_LLAMA, "head_dim": 12, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "norm_topk_prob": True, "rope_parameters": _ROPE,
        },
    ),
    "olmoe": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {**_LLAMA, "num_experts": 5, "num_experts_per_tok": 3, "rope_parameters": _ROPE},
    ),
    "olmoe_biased": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {
            **_LLAMA, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
            "attention_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu",
        },
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_LATENT, "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1,
            "rope_parameters": {**_ROPE, **_YARN, "mscale": 0.8, "mscale_all_dim": 1.2},
        },
    ),
    "deepseek_v3_biased": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0,
            "attention_bias": True, "norm_topk_prob": False, "rope_interleave": False, "n_shared_experts": 2,
            "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": True,
        },
    ),
    "deepseek_v3_dense": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**_LATENT, "q_lora_rank": 20, "n_group": 2, "topk_group": 1, "first_k_dense_replace": LAYERS},
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {
            **_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT, "local_attention": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "modernbert_biased": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {
            **_SHARED, "intermediate_size": 72, "max_position_embeddings": CONTEXT, "local_attention": 4,
            "norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True,
            "global_attn_every_n_layers": 2, "decoder_bias": False, "hidden_activation": "silu",
            "classifier_activation": "silu",
        },
    ),
}  # fmt: skip
NAMES = list(CASES)
VARIANTS = [name if name in families.NAMES else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
"""As `NAMES`, with the second and third case of a family among the slow tests."""


def reference(name: str) -> nn.Module:
    """transformers' model of a case, without dropout; no part of it is near the identity or zero."""
    torch.manual_seed(5)
    model = getattr(transformers, CASES[name][0])(config_of(name))
    if name in ("t5_v1_1", "mt5"):
        # transformers 5 ties them when it makes a model, but not when it reads two different ones.
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.shared.weight))
    return randomized(name, model)


def headless(name: str, **settings: Any) -> nn.Module:
    """As `reference`, but what transformers' AutoModel makes: the model without its head."""
    torch.manual_seed(5)
    return randomized(name, transformers.AutoModel.from_config(config_of(name), **settings))


def config_of(name: str, **changes: Any) -> Any:
    """transformers' config of a case, without dropout."""
    _, config_name, settings = CASES[name]
    settings = {**settings, **changes}
    config = getattr(transformers, config_name)(
        **{"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **settings}
    )
    for key in list(config.to_dict()):
        if "dropout" in key or key.endswith("pdrop"):
            setattr(config, key, 0.0)
    config._attn_implementation = "eager"
    return config


def randomized(name: str, model: nn.Module) -> nn.Module:
    """A model of a case with large random weights."""
    # T5 does not scale the scores, and a softmax of large ones makes training chaotic.
    std = 0.1 if name.startswith(("t5", "mt5")) else 0.15
    # Gemma's norms multiply by 1 + weight.
    middle = 0.0 if name.startswith("gemma") else 1.0
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=middle if parameter.dim() == 1 and "bias" not in key else 0.0, std=std)
    for key, buffer in model.named_buffers():
        if key.endswith("e_score_correction_bias"):
            nn.init.normal_(buffer, std=std)
    return model.train()


def save(model: nn.Module, folder: Path, **settings: Any) -> Path:
    """The model's Hugging Face directory, as transformers writes it."""
    model.save_pretrained(folder, **settings)
    return folder


def pair(name: str, folder: Path) -> tuple[Transformer, nn.Module]:
    """Our model, imported from what transformers saved, and the reference."""
    theirs = reference(name)
    import_directory(save(theirs, folder / "hf"), folder / "ours", tokenizer=BYTES)
    return load_model(folder / "ours").model.train(), theirs


def stored(model: nn.Module, read: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What `read` takes from each parameter, under the names that transformers stores it by: each expert's matrices
    alone, which it holds together in memory."""
    found = {}
    mixtral = model.config.model_type == "mixtral"
    for own, buffer in model.named_buffers():
        if own.endswith("e_score_correction_bias"):
            # Which is stored, but does not learn.
            found[own] = torch.zeros_like(buffer) if read(buffer) is None else read(buffer)
    for own, parameter in model.named_parameters():
        name, tensor = own, read(parameter)
        if model.config.model_type == "gpt_neox":
            name = name.replace("lm_head.", "embed_out.")
        if model.config.model_type == "xlm-roberta":
            # Its head stands before what it is tied to.
            name = name.replace("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight")
        if mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        if ".experts." not in name:
            found[name] = tensor
            continue
        base, _, part = name.rpartition(".")
        for expert, matrix in enumerate(tensor):
            if part == "down_proj":
                found[f"{base}.{expert}.{'w2' if mixtral else 'down_proj'}.weight"] = matrix
                continue
            gate, up = matrix.chunk(2)
            found[f"{base}.{expert}.{'w1' if mixtral else 'gate_proj'}.weight"] = gate
            found[f"{base}.{expert}.{'w3' if mixtral else 'up_proj'}.weight"] = up
    return found


def renamed(model: nn.Module, config: ModelConfig, read: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What `read` takes from each of the reference's parameters, under the names and in the orientation of our model
    with that config."""
    tensors = stored(model, read)
    result = {}
    for move in plan(table_of(config.family), config, shapes_of(config, VOCAB)):
        result.update(zip(move.ours, move.to_ours([tensors[name] for name in move.theirs]), strict=True))
    return result


def tokens(batch: int = 3, length: int = CONTEXT, seed: int = 7) -> Tensor:
    """(batch, length) random token ids; 0 is padding and does not occur."""
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
