"""The key-value cache: what it saves must not change what is said."""

import pytest
import torch

from llmscale.generate import Settings
from llmscale.generate.decode import decode
from llmscale.generate.prompts import Context
from llmscale.model import KeyValueCache, Transformer
from tests.model.references import CONFIGS, CONTEXT, VOCAB, pair, tokens

NAMES = list(CONFIGS)


def cache_of(model: Transformer, batch: int, capacity: int = CONTEXT) -> KeyValueCache:
    return KeyValueCache(model.config, batch, capacity, torch.float32, "cpu")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [[10], [1] * 10, [4, 6], [3, 1, 5, 1], [9, 1]])
def test_reading_in_parts_equals_reading_at_once(name: str, parts: list[int]) -> None:
    model, _ = pair(name)
    ids = tokens(batch=2, length=10)
    cache = cache_of(model, batch=2)
    with torch.no_grad():
        hidden = torch.cat([model(part, cache=cache).hidden for part in ids.split(parts, dim=1)], dim=1)
        torch.testing.assert_close(hidden, model(ids).hidden, rtol=1e-4, atol=1e-5)
    assert cache.length == 10


def test_a_batch_of_equal_lengths_goes_through_one_cache() -> None:
    model, _ = pair("llama")
    prompts = tokens(batch=3, length=6)
    cache = cache_of(model, batch=3)
    with torch.no_grad():
        model(prompts, cache=cache)
        step = tokens(batch=3, length=1, seed=9)
        together = model(step, cache=cache).hidden
        alone = model(torch.cat([prompts, step], dim=1)).hidden[:, -1:]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_full_cache_and_segments_are_refused() -> None:
    model, _ = pair("gpt2")
    cache = cache_of(model, batch=1, capacity=4)
    with torch.no_grad():
        model(tokens(batch=1, length=4), cache=cache)
        with pytest.raises(ValueError, match="the cache holds 4 tokens, but 5 are needed"):
            model(tokens(batch=1, length=1), cache=cache)
        ids = tokens(batch=1, length=3)
        with pytest.raises(ValueError, match="a cache cannot be combined with segment_ids, nor"):
            model(ids, segment_ids=torch.zeros_like(ids), cache=cache_of(model, batch=1))


def test_reordering_is_reading_the_other_sequence() -> None:
    for rows in ([2, 0, 0], [1], [2, 1, 0, 1]):
        model, _ = pair("llama")
        prompts, step = tokens(batch=3, length=6), tokens(batch=len(rows), length=1, seed=9)
        cache = cache_of(model, batch=3)
        with torch.no_grad():
            model(prompts, cache=cache)
            cache.reorder(torch.tensor(rows))
            found = model(step, cache=cache).hidden
            alone = model(torch.cat([prompts[rows], step], dim=1)).hidden[:, -1:]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_padded_tokens_are_never_drawn() -> None:
    model, _ = pair("gpt2")
    drawn = []
    settings = Settings(max_new_tokens=CONTEXT - 1, temperature=50.0, seed=1)
    for _ in decode(model, [Context([3])], settings, lambda _, token: bool(drawn.append(token))):
        pass
    assert max(drawn) < VOCAB
    assert len(drawn) == CONTEXT - 1
    assert len(set(drawn)) > 10
