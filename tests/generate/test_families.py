"""Every family: a batch of unequal prompts equals each prompt alone, and the cache equals recomputation."""

import pytest
import torch

from data_pipeline.tokenizer import BytesTokenizer
from llmscale.generate import Generator
from llmscale.generate.beams import beam_search
from llmscale.generate.decode import decode
from llmscale.generate.packed import packed
from llmscale.generate.prompts import Context
from llmscale.generate.settings import Settings
from llmscale.generate.state import State
from llmscale.model import Transformer
from tests.generate.models import MODELS, contexts_for, greedy, model_of

COUNT = 10
# Families made of the parts of others.
LATER = ("opt", "phi", "glm4", "gemma", "olmoe", "smollm3", "bloom", "megatron_nlg", "granite", "qwen3", "mixtral")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in LATER else ()) for name in MODELS]


@torch.no_grad()
def logits_of_all(model: Transformer, context: Context, new: list[int]) -> torch.Tensor:
    """(len(new) + 1, vocabulary) logits of each new token and of one after them, in one pass without a cache."""
    encoder = None if context.source is None else torch.tensor([context.source])
    read = torch.tensor([[*context.tokens, *new][: model.config.max_positions]])
    return model.head(model(read, encoder_inputs=encoder).hidden[0, len(context.tokens) - 1 :])


@torch.no_grad()
def recomputed_logits(model: Transformer, context: Context, new: list[int]) -> torch.Tensor:
    """Logits of the token after context and new ones, from scratch and without a cache."""
    tokens = torch.tensor([[*context.tokens, *new]])
    encoder = None if context.source is None else torch.tensor([context.source])
    prefix = torch.tensor([len(context.tokens)]) if context.prefix else None
    return model.head(model(tokens, prefix_lengths=prefix, encoder_inputs=encoder).hidden[0, -1])


def recomputed(model: Transformer, context: Context, settings: Settings) -> list[int]:
    """Greedy tokens without cache, batch or packed weights."""
    new: list[int] = []
    while len(new) < settings.max_new_tokens:
        logits = recomputed_logits(model, context, new)
        if settings.repetition_penalty != 1:
            for token in {*context.tokens, *new}:
                logits[token] *= settings.repetition_penalty if logits[token] < 0 else 1 / settings.repetition_penalty
        token = int(logits.argmax())
        if token == 1:
            break
        new.append(token)
    return new


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_equals_each_prompt_recomputed(name: str) -> None:
    model = model_of(name)
    contexts = contexts_for(model)
    settings = Settings(max_new_tokens=COUNT, repetition_penalty=1.2)
    expected = [recomputed(model, context, settings) for context in contexts]
    assert len({tuple(tokens) for tokens in expected}) > 1
    for form in (model, packed(model)):
        assert greedy(form, contexts, settings) == expected
        assert [greedy(form, [context], settings)[0] for context in contexts] == expected


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_a_batch_are_those_of_each_prompt(name: str) -> None:
    model = model_of(name)
    contexts = contexts_for(model)
    given = torch.randint(2, 90, (len(contexts), 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for form in (model, packed(model)):
            state = State(form, contexts, room=7)
            for step in range(7):
                logits = state.read()
                for row, context in enumerate(contexts):
                    expected = recomputed_logits(model, context, given[row, :step].tolist())
                    torch.testing.assert_close(logits[row], expected, rtol=1e-4, atol=1e-4)
                if step < 6:
                    state.append(given[:, step])


@pytest.mark.parametrize("name", ["gpt2", "mistral", "alibi"])
def test_a_prefix_sees_itself_in_both_directions(name: str) -> None:
    model = model_of(name)
    contexts, settings = contexts_for(model, prefix=True), Settings(max_new_tokens=COUNT)
    expected = [recomputed(model, context, settings) for context in contexts]
    assert greedy(model, contexts, settings) == expected
    assert expected != greedy(model, contexts_for(model), settings)


@pytest.mark.parametrize("name", NAMES)
def test_beam_search_of_a_batch_equals_each_prompt(name: str) -> None:
    model = model_of(name)
    contexts = contexts_for(model)
    settings = Settings(max_new_tokens=8, beams=3)
    alone = [beam_search(model, [context], settings, [1])[0] for context in contexts]
    assert beam_search(packed(model), contexts, settings, [1]) == alone


@pytest.mark.parametrize(
    ("beams", "temperature"), [(1, 0.0), *(pytest.param(*how, marks=pytest.mark.slow) for how in ((3, 0.0), (1, 1.5)))]
)
@pytest.mark.parametrize("name", NAMES)
def test_each_prompt_fills_the_context_whatever_else_there_is(name: str, beams: int, temperature: float) -> None:
    """By default a long prompt in the batch, after which there is little room, does not shorten what others get."""
    model = model_of(name)
    limit = model.config.max_positions
    contexts = contexts_for(model, (limit - 3, 2, 30, 17))
    tokenizer = BytesTokenizer()
    tokenizer.special = {"eos": 1}
    generator = Generator(model, tokenizer)
    options = {"max_new_tokens": limit - 5, "beams": beams, "early_stopping": "never", "temperature": temperature}
    found = generator.complete(contexts, Settings(**options, shorten=True))
    decoder = model.encoder is None
    for context, completion in zip(contexts, found, strict=True):
        room = min(limit - 5, limit - len(context.tokens)) if decoder else limit - 5
        own = Settings(**{**options, "max_new_tokens": room})
        assert generator.complete([context], own) == [completion]
        assert completion.finish == ("length" if len(completion.tokens) == room else "end")
        if beams == 1 and temperature == 0:
            # Each token is the most probable one after those before it, so that no other greedy text exists.
            best = logits_of_all(model, context, completion.tokens).argmax(-1).tolist()
            assert best[:room] == [*completion.tokens, 1][:room]
    assert max(len(completion.tokens) for completion in found) > 3


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_contexts_that_end_leave_the_batch(name: str) -> None:
    """Whatever has ended no longer takes part, and what goes on is not disturbed."""
    model = model_of(name)
    contexts = contexts_for(model)
    expected = greedy(model, contexts, Settings(max_new_tokens=COUNT), end=None)
    sizes: list[int] = []
    model.head.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    found: list[list[int]] = [[] for _ in contexts]

    def ended(number: int, token: int) -> bool:
        found[number].append(token)
        return len(found[number]) == (3, 9, 1, 2)[number]

    for _ in decode(model, contexts, Settings(max_new_tokens=COUNT), ended):
        pass
    assert sizes == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert found == [row[:size] for row, size in zip(expected, (3, 9, 1, 2), strict=True)]
