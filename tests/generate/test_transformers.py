"""Greedy decoding, beam search and the repetition penalty beside transformers' `generate`, token by token."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, MistralForCausalLM, T5Config, T5ForConditionalGeneration

from data_pipeline.tokenizer import BytesTokenizer
from llmscale.config import ModelConfig
from llmscale.generate import Generator
from llmscale.generate.beams import Found, beam_search
from llmscale.generate.packed import packed
from llmscale.generate.settings import Settings
from llmscale.model import Transformer
from llmscale.parallel.init import build
from tests.generate.models import contexts_for, greedy
from tests.model import references
from tests.model.references import CONTEXT, LAYERS, LLAMA, VOCAB

END = 1
COUNT = 12
WINDOW = 5
T5 = ModelConfig(
    family="t5",
    activation="geglu_tanh", layers=LAYERS, hidden_size=40, heads=4, head_size=12, ffn_size=72, max_positions=CONTEXT,
    vocab_multiple=16, relative_buckets=8, relative_max_distance=12,
)  # fmt: skip
T5_NAMES = {
    "shared": "embedding", "encoder.block": "encoder.blocks", "decoder.block": "blocks",
    "encoder.final_layer_norm": "encoder.norm", "decoder.final_layer_norm": "norm",
    "layer.0.SelfAttention": "attention", "layer.0.layer_norm": "attention_norm",
    "layer.1.EncDecAttention": "cross_attention", "layer.1.layer_norm": "cross_attention_norm",
    "layer.2.DenseReluDense": "feed_forward", "layer.2.layer_norm": "feed_forward_norm",
    ".q.": ".query.", ".k.": ".key.", ".v.": ".value.", ".o.": ".output.",
    "wi_0": "gate", "wi_1": "up", "wo": "down",
    "encoder.blocks.0.attention.relative_attention_bias": "encoder.relative_bias.table",
    "blocks.0.attention.relative_attention_bias": "relative_bias.table",
}  # fmt: skip


def mistral() -> tuple[Transformer, nn.Module]:
    theirs = MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCAB, hidden_size=40, intermediate_size=72, num_hidden_layers=LAYERS, num_attention_heads=4,
            num_key_value_heads=2, head_dim=12, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=False,
            sliding_window=WINDOW, attn_implementation="eager", bos_token_id=0, eos_token_id=END,
        )
    )  # fmt: skip
    ours = build(LLAMA.model_copy(update={"attention_pattern": ["local"], "window": WINDOW}), VOCAB, seed=0)
    randomize(theirs)
    copy_weights(ours, references.renamed("llama", theirs, lambda parameter: parameter.detach()))
    return ours, theirs


def t5() -> tuple[Transformer, nn.Module]:
    theirs = T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCAB, d_model=40, d_kv=12, d_ff=72, num_layers=LAYERS, num_heads=4,
            relative_attention_num_buckets=8, relative_attention_max_distance=12, feed_forward_proj="gated-gelu",
            decoder_start_token_id=0, pad_token_id=0,
            eos_token_id=END,
        )
    )  # fmt: skip
    randomize(theirs)
    named = {}
    for key, value in theirs.named_parameters():
        name = key.replace("layer.1.", "layer.2.") if key.startswith("encoder") else key
        for old, new in T5_NAMES.items():
            name = name.replace(old, new)
        named[name] = value
    ours = build(T5, VOCAB, seed=0)
    copy_weights(ours, named)
    return ours, theirs


def randomize(model: nn.Module) -> None:
    """So that what comes next depends on more than the last token."""
    torch.manual_seed(6)
    for name, parameter in model.named_parameters():
        norm = parameter.dim() == 1 and not name.endswith("bias")
        table = name.endswith(("wte.weight", "wpe.weight", "shared.weight", "embed_tokens.weight", "lm_head.weight"))
        nn.init.normal_(parameter, mean=float(norm), std=0.15 if table else 0.3)


@torch.no_grad()
def copy_weights(ours: Transformer, named: dict[str, Tensor]) -> None:
    own = dict(ours.named_parameters())
    assert set(named) == set(own)
    for key, value in named.items():
        own[key][: len(value)] = value


@cache
def pair(name: str) -> tuple[Transformer, nn.Module]:
    ours, theirs = {"mistral": mistral, "t5": t5}[name]() if name in ("mistral", "t5") else known(name)
    return ours.eval(), theirs.eval()


def known(name: str) -> tuple[Transformer, nn.Module]:
    ours, theirs = references.pair(name)
    randomize(theirs)
    copy_weights(ours, references.renamed(name, theirs, lambda parameter: parameter.detach()))
    return ours, theirs


@cache
def ends_of(name: str) -> list[int]:
    """Tokens that greedy decoding comes to after a few others, so that hypotheses end at many lengths."""
    ours, _ = pair(name)
    rows = greedy(ours, contexts_for(ours), Settings(max_new_tokens=COUNT), end=None)
    return sorted({row[place] for row, place in zip(rows, (3, 5, 7, 9), strict=True)})


def reference(name: str, row: list[int], **options: Any) -> Found:
    """What transformers adds to a prompt."""
    theirs = pair(name)[1]
    ids = torch.tensor([row])
    found = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, pad_token_id=0, **options
    )[0].tolist()
    new = found[1:] if name == "t5" else found[len(row) :]
    ends = options["eos_token_id"] or []
    return next((Found(new[:place], token) for place, token in enumerate(new) if token in ends), Found(new, None))


NAMES = ["gpt2", "llama", "mistral", "t5"]
PENALTIES = [1.0, 1.4, 0.8]
BEAMS: list[dict[str, Any]] = [
    {},
    {"beams": 4, "length_penalty": 0.0},
    {"length_penalty": 2.0},
    {"length_penalty": -1.0, "early_stopping": "never"},
    {"beams": 5, "early_stopping": True},
    {"early_stopping": "never", "length_penalty": 1.5},
    {"repetition_penalty": 1.3},
]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("name", NAMES)
def test_greedy(name: str, penalty: float) -> None:
    ours, _ = pair(name)
    contexts = contexts_for(ours)
    options = {"repetition_penalty": penalty, "eos_token_id": None}
    expected = [reference(name, context.key, **options).tokens for context in contexts]
    settings = Settings(max_new_tokens=COUNT, repetition_penalty=penalty)
    for model in (ours, packed(ours)):
        assert greedy(model, contexts, settings, end=None) == expected


@pytest.mark.parametrize("options", BEAMS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_beam_search(name: str, options: dict[str, Any]) -> None:
    ours, _ = pair(name)
    contexts = contexts_for(ours)
    ends = ends_of(name)
    given = {"beams": 3, **options}
    theirs = {("num_beams" if key == "beams" else key): value for key, value in given.items()}
    expected = [reference(name, context.key, eos_token_id=ends, **theirs) for context in contexts]
    settings = Settings(max_new_tokens=COUNT, **given)
    for model in (ours, packed(ours)):
        assert beam_search(model, contexts, settings, ends) == expected


def test_beam_search_says_what_ended_a_text() -> None:
    finishes = set()
    for name in NAMES:
        ours, _ = pair(name)
        contexts = contexts_for(ours)
        eos, *stops = ends_of(name)
        tokenizer = BytesTokenizer()
        tokenizer.special = {"eos": eos}
        settings = Settings(max_new_tokens=COUNT, beams=3, stop_tokens=tuple(stops))
        for completion, context in zip(Generator(ours, tokenizer).complete(contexts, settings), contexts, strict=True):
            expected = reference(name, context.key, eos_token_id=[eos, *stops], num_beams=3)
            assert completion.tokens == expected.tokens
            assert completion.finish == {None: "length", eos: "end"}.get(expected.end, "stop")
            finishes.add(completion.finish)
    assert finishes == {"end", "stop", "length"}


def test_beam_search_finds_other_texts_than_greedy_decoding() -> None:
    """Else the comparisons above would say little."""
    lengths, ended = set(), set()
    for name in NAMES:
        ours, _ = pair(name)
        contexts = contexts_for(ours)
        found = beam_search(ours, contexts, Settings(max_new_tokens=COUNT, beams=3), ends_of(name))
        rows = greedy(ours, contexts, Settings(max_new_tokens=COUNT), end=None)
        assert any(row[: len(best.tokens)] != best.tokens for row, best in zip(rows, found, strict=True))
        assert len({tuple(row) for row in rows}) > 1
        lengths |= {len(best.tokens) for best in found}
        ended |= {best.end is None for best in found}
    assert len(lengths) > 4
    assert ended == {True, False}
