"""Small Hugging Face directories with the conventions of published models, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from tests.data_pipeline.tokenizer.vocabularies import TEXT, gpt2_files, t5_file

CONTEXT = 64
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip


def byte_level(special: tuple[str, ...]) -> Tokenizer:
    """A byte-level BPE as today's decoders have it; its special tokens come last."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXT[:300], trainer)
    backend.add_special_tokens(list(special))
    return backend


def template(backend: Tokenizer, single: str, *names: str) -> Tokenizer:
    """The same with a template around a text, behind what it has, as Llama 3 has it."""
    pairs = [(name, backend.token_to_id(name)) for name in names]
    framed = processors.TemplateProcessing(single=single, special_tokens=pairs)
    backend.post_processor = processors.Sequence([backend.post_processor, framed])
    return backend


def write_tokenizer(folder: Path, kind: str) -> None:
    """The tokenizer's files of a model of a kind."""
    names: dict[str, str] = {"bos_token": "<s>", "eos_token": "</s>"}
    settings: dict[str, Any] = {}
    match kind:
        case "llama3" | "add_bos_token":
            backend = byte_level(("<s>", "</s>"))
            if kind == "llama3":
                backend = template(backend, "<s> $A", "<s>")
            else:
                settings = {"add_bos_token": True, "add_eos_token": False}
        case "both":
            backend = template(byte_level(("<s>", "</s>")), "<s> $A </s>", "<s>", "</s>")
        case "qwen":
            backend = byte_level(("<|endoftext|>", "<|im_end|>"))
            names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
            settings = {"add_bos_token": False}
        case "gpt2":
            gpt2_files(folder)
            names = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}))
            return
        case "llama2":
            t5_file(
                folder, "tokenizer.model", model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                remove_extra_whitespaces=False, bos_id=1, eos_id=2, unk_id=0, pad_id=-1, vocab_size=600,
            )  # fmt: skip
            config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, **names}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
            return
        case "t5":
            t5_file(folder)
            (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
            return
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def write_model(folder: Path, kind: str, seed: int = 0, **ids: Any) -> nn.Module:
    """A model of random weights beside its tokenizer, in evaluation mode; `ids` go into its config."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, kind)
    torch.manual_seed(seed)
    config: Any
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=620, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0,
            n_positions=CONTEXT, **{"decoder_start_token_id": 0, **ids},
        )  # fmt: skip
        model: nn.Module = transformers.T5ForConditionalGeneration(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=720,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT,
            **{"bos_token_id": 0, "eos_token_id": 0, **ids},
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(vocab_size=640, tie_word_embeddings=False, **SIZES, **ids)
        model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    model.eval().save_pretrained(folder)
    return model


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file, which is made where there is none."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **values}))
