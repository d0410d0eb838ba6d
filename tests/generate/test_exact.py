"""`Settings.exact`: a text depends on its prompt alone, to the bit, whatever is continued beside it."""

import random
from pathlib import Path

import pytest
import torch

from llmscale.checkpoint.model import load_model
from llmscale.generate import Generator, Settings, reading_of
from llmscale.generate.decode import decode
from llmscale.generate.prompts import contexts_of
from tests.evaluate.models import write_checkpoint

PROMPTS = [
    *("the cat", "a", "two old dogs ran far away from houses and", "the", "sat on a mat while two"),
    # Padded to 48 and to 64 tokens while they are read, then both to 64.
    *("x" * 40, "y" * 52),
]


@pytest.mark.parametrize("family", ["llama", "experts", "t5"])
def test_texts_do_not_depend_on_their_neighbours(family: str, tmp_path: Path) -> None:
    trained = load_model(write_checkpoint(tmp_path / "model", family))
    generator = Generator(trained.model, trained.tokenizer, reading_of(trained.config.objective))
    for temperature in (0.0, 0.8):
        settings = Settings(max_new_tokens=12, temperature=temperature, exact=True, min_new_tokens=2)
        alone = {prompt: generator.generate([prompt], settings)[0].tokens for prompt in PROMPTS}
        plain = Settings(max_new_tokens=12, temperature=temperature, min_new_tokens=2)
        assert alone[PROMPTS[0]] == generator.generate([PROMPTS[0]], plain)[0].tokens
        for seed, batch in ((0, 2), (1, 5), (2, 32)):
            some = list(PROMPTS)
            random.Random(seed).shuffle(some)
            some = some[: 3 + seed]
            texts = generator.generate(some, Settings(**{**vars(settings), "batch": batch}))
            assert [text.tokens for text in texts] == [alone[prompt] for prompt in some]


@pytest.mark.parametrize("family", ["llama", "experts"])
def test_logits_are_the_same_bits(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_model(write_checkpoint(tmp_path / "model", family))
    seen: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(logits.clone())
        return logits.argmax(-1)

    monkeypatch.setattr("llmscale.generate.decode.choose", spy)
    reading = reading_of(trained.config.objective)
    settings = Settings(max_new_tokens=6, exact=True)

    def first_row(prompts: list[str]) -> list[torch.Tensor]:
        seen.clear()
        contexts = contexts_of(prompts, trained.tokenizer, trained.config.model, reading)
        for _ in decode(trained.model, contexts, settings, lambda number, token: False):
            pass
        return [logits[0] for logits in seen]

    alone = first_row(["the cat sat"])
    for others in (["a"], ["two old dogs", "far"], ["ran"] * 20):
        together = first_row(["the cat sat", *others])
        assert all(torch.equal(left, right) for left, right in zip(alone, together, strict=True))
