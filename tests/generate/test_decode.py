"""From a prompt to text: the end of a document, too long prompts, characters of several tokens."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import BytesTokenizer
from llmscale.config import ModelConfig
from llmscale.generate import Sampler, generate, stream
from llmscale.generate.decode import new_tokens
from llmscale.model import Transformer
from llmscale.parallel.init import build

TOKENIZER = BytesTokenizer()
END = TOKENIZER.special["eos"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(layers=2, hidden_size=24, heads=2, max_positions=32, init_std=0.3)
    return build(config, TOKENIZER.vocab_size, seed=2)


class Script(Sampler):
    """Chooses given tokens, whatever the logits."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__()
        self.tokens = iter(tokens)

    def choose(self, logits: Tensor) -> Tensor:
        return torch.tensor([next(self.tokens)])


def test_a_prompt_follows_the_end_of_document_token(model: Transformer) -> None:
    expected = list(new_tokens(model, [END, *TOKENIZER.encode("ab")], 9, Sampler(temperature=0), stop={END}))
    assert generate(model, TOKENIZER, "ab", max_new_tokens=9) == TOKENIZER.decode(expected)


def test_an_empty_prompt_begins_a_document(model: Transformer) -> None:
    expected = list(new_tokens(model, [END], 5, Sampler(temperature=0), stop={END}))
    assert generate(model, TOKENIZER, "", max_new_tokens=5) == TOKENIZER.decode(expected)


def test_generation_ends_with_the_document(model: Transformer) -> None:
    script = Script([*TOKENIZER.encode("xy"), END, *TOKENIZER.encode("never")])
    assert generate(model, TOKENIZER, "a", max_new_tokens=20, sampler=script) == "xy"


def test_whole_characters_are_streamed(model: Transformer) -> None:
    text = "né中🙂!"
    script = Script(TOKENIZER.encode(text))
    pieces = list(stream(model, TOKENIZER, "", max_new_tokens=len(text.encode()), sampler=script))
    assert [piece for piece in pieces if piece] == list(text)


def test_an_unfinished_character_is_shown_at_the_end(model: Transformer) -> None:
    script = Script(TOKENIZER.encode("a中")[:-1])
    assert generate(model, TOKENIZER, "", max_new_tokens=3, sampler=script) == "a\ufffd"


def test_the_same_seed_gives_the_same_text(model: Transformer) -> None:
    texts = [
        generate(model, TOKENIZER, "ab", max_new_tokens=20, sampler=Sampler(1.0, top_k=50, top_p=0.9, seed=seed))
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_context_may_be_filled_but_not_exceeded(model: Transformer) -> None:
    prompt = "a" * 20
    assert len(list(new_tokens(model, [5] * 21, 11, Sampler(temperature=0)))) == 11
    generate(model, TOKENIZER, prompt, max_new_tokens=11)
    with pytest.raises(UserError, match=r"21 tokens and 12 new ones exceed the model's context of 32.*to 11 or less"):
        generate(model, TOKENIZER, prompt, max_new_tokens=12)
