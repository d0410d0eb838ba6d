"""What a generation_config.json bars and forces, beside transformers' `generate`, token by token."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.base.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer.conventions import Conventions
from data_pipeline.tokenizer.frame import conventions_of
from llmscale.checkpoint.model import TrainedModel, load_model
from llmscale.config.generation import read_defaults, unmet
from llmscale.generate import Generator
from llmscale.generate.chat import Dialogue
from llmscale.generate.defaults import settings_of
from llmscale.generate.prompts import contexts_of
from llmscale.generate.template import DefaultTemplate
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.conventions import write_model

PROMPTS = ["def wrap(text):", "x", "The café"]
RULES: list[dict[str, Any]] = [
    {"max_new_tokens": 9, "suppress_tokens": [5, 7, *range(100, 300)]},
    {"max_new_tokens": 9, "begin_suppress_tokens": list(range(9, 600))},
    {"max_new_tokens": 9, "min_new_tokens": 6, "eos_token_id": list(range(0, 600, 3))},
    {"max_length": 14, "min_length": 10, "eos_token_id": list(range(0, 600, 3))},
    {"max_new_tokens": 9, "forced_eos_token_id": 33},
    {"max_new_tokens": 9, "forced_bos_token_id": 44, "begin_suppress_tokens": list(range(9, 600))},
    {"max_new_tokens": 9, "repetition_penalty": 1.7, "suppress_tokens": list(range(50))},
]


Pair = tuple[TrainedModel, Any]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """By kind, the imported model and transformers'."""
    folder = tmp_path_factory.mktemp("rules")
    found = {}
    for kind in ("llama3", "t5"):
        theirs = write_model(folder / kind, kind, seed=1)
        import_directory(folder / kind, folder / f"ours-{kind}")
        found[kind] = load_model(folder / f"ours-{kind}"), theirs
    return found


def with_defaults(pair: Pair, generation: dict[str, Any]) -> Pair:
    """The same with other defaults of generation, as import keeps them and as transformers reads them."""
    ours, theirs = pair
    kept = conventions_of(ours.tokenizer)
    assert kept is not None
    ends = generation.get("eos_token_id", 1)
    stop = tuple(ends) if isinstance(ends, list) else (ends,)
    ours.tokenizer.conventions = replace(kept, generation=generation, stop=stop)  # type: ignore[attr-defined]
    theirs.generation_config = transformers.GenerationConfig(
        **{"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0, "do_sample": False, **generation}
    )
    return ours, theirs


@pytest.mark.parametrize("number", range(len(RULES)))
@pytest.mark.parametrize("kind", ["llama3", "t5"])
def test_rules_are_those_of_transformers(kind: str, number: int, pairs: dict[str, Pair]) -> None:
    ours, theirs = with_defaults(pairs[kind], RULES[number])
    contexts = contexts_of(PROMPTS, ours.tokenizer, ours.model.config, "document")
    generator = Generator(ours.model, ours.tokenizer)
    rows = []
    for beams in (1, 3):
        options = {"temperature": 0.0} if beams == 1 else {"beams": beams}
        settings = settings_of({**options, "batch": 2}, ours.tokenizer)
        ends = settings.ends(ours.tokenizer)
        for context, done in zip(contexts, generator.complete(contexts, settings), strict=True):
            ids = torch.tensor([context.key])
            made = theirs.generate(ids, num_beams=beams)[0].tolist()
            new = made[1:] if kind == "t5" else made[len(context.key) :]
            stop = next((place for place, token in enumerate(new) if token in ends), len(new))
            assert done.tokens == new[:stop]
            rows.append(made)
    plain = {"max_new_tokens": 9, "eos_token_id": ends} if "max_new_tokens" in RULES[number] else {"max_length": 14}
    _, free = with_defaults(pairs[kind], plain)
    different = [
        free.generate(torch.tensor([c.key]))[0].tolist() != row for c, row in zip(contexts, rows, strict=False)
    ]
    # Else the comparison would say little; a first token is forced behind the start of a decoder only.
    assert any(different) or (kind == "llama3" and "forced_bos_token_id" in RULES[number])


def stream_of(dialogue: Dialogue, text: str) -> str:
    out = io.StringIO()
    dialogue.ask(text, out)
    return out.getvalue()


def test_a_dialogue_begins_as_the_model_does_and_ends_at_each_end(pairs: dict[str, Pair]) -> None:
    plain, theirs = with_defaults(pairs["llama3"], {"max_new_tokens": 12})
    template = DefaultTemplate(plain.tokenizer, plain.model.config, "document")
    generator = Generator(plain.model, plain.tokenizer)
    settings = settings_of({"temperature": 0.0}, plain.tokenizer)
    dialogue = Dialogue(generator, template, settings)
    stream_of(dialogue, "hi")
    prompt = "User: hi\nAssistant:"
    begin = plain.tokenizer.special["bos"]
    ids = [begin, *plain.tokenizer.encode(prompt)]
    new = theirs.generate(torch.tensor([ids]))[0].tolist()[len(ids) :]
    known = [token for token in new if token < plain.tokenizer.vocab_size]
    whole = plain.tokenizer.decode([*ids, *known])
    assert dialogue.turns[-1].text == whole[len(prompt) :].split("\nUser:")[0].strip()
    ended, _ = with_defaults(pairs["llama3"], {"max_new_tokens": 12, "eos_token_id": [300, new[4], new[2]]})
    dialogue = Dialogue(Generator(ended.model, ended.tokenizer), template, settings)
    stream_of(dialogue, "hi")
    stop = min(new.index(token) for token in (new[4], new[2]))
    known = [token for token in new[:stop] if token < plain.tokenizer.vocab_size]
    assert dialogue.turns[-1].text == plain.tokenizer.decode([*ids, *known])[len(prompt) :].strip()


class Kept(Tokenizer):
    """A tokenizer of which only the conventions count."""

    def __init__(self, **generation: Any) -> None:
        self.conventions = Conventions(generation=generation)


def test_explicit_options_win_and_what_is_not_said_is_ours() -> None:
    ours = settings_of({}, Kept())
    assert (ours.temperature, ours.top_k, ours.top_p, ours.max_new_tokens, ours.shorten) == (0.8, 0, 1.0, 128, True)
    assert settings_of({}, Kept(do_sample=False, temperature=0.6)).temperature == 0
    assert settings_of({}, Kept(temperature=0.6)).temperature == 0.6
    sampled = settings_of({}, Kept(do_sample=True, top_p=0.9))
    assert (sampled.temperature, sampled.top_k, sampled.top_p) == (1.0, 50, 0.9)
    assert settings_of({"temperature": 0.3, "top_k": 0}, Kept(do_sample=True)).top_k == 0
    beams = settings_of({}, Kept(num_beams=4, length_penalty=0.6, early_stopping=True))
    assert (beams.beams, beams.length_penalty, beams.early_stopping, beams.temperature) == (4, 0.6, True, 0)
    assert settings_of({"temperature": 0.5}, Kept(num_beams=4)).beams == 1
    assert settings_of({"beams": 2}, Kept(do_sample=True)).temperature == 0
    assert settings_of({}, Kept(max_length=40)).max_length == 40
    assert settings_of({"max_new_tokens": 5}, Kept(max_length=40)).max_length == 0
    assert settings_of({}, Kept(max_length=40, max_new_tokens=7)).max_length == 0
    assert settings_of({}, Kept(stop_strings="END")).stop == ("END",)
    assert settings_of({"stop": ("x",)}, Kept(stop_strings=["END"])).stop == ("x",)


@pytest.mark.parametrize(
    ("generation", "reason"),
    [
        ({"temperature": True}, "temperature is True, but must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5, but must be a whole number"),
        ({"eos_token_id": "</s>", "suppress_tokens": {"a": 1}}, "suppress_tokens is .* but must be a token id, a list"),
        ({"do_sample": "yes"}, "do_sample is 'yes', but must be true or false"),
        ({"early_stopping": 3}, "early_stopping is 3, but must be true, false or"),
        ({"stop_strings": [""]}, "stop_strings is .* but must be a text or a list of texts"),
        ({"top_p": float("inf")}, "top_p is inf, but must be finite"),
    ],
)
def test_values_of_the_wrong_kind(generation: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_defaults(generation)


def test_values_out_of_range_name_the_file() -> None:
    with pytest.raises(UserError, match=r"generation_config\.json of the imported model: top_p is -1\.0, but must be"):
        settings_of({}, Kept(top_p=-1))


def test_what_cannot_be_done_is_told() -> None:
    assert unmet({"no_repeat_ngram_size": 0, "min_p": None, "typical_p": 1.0, "bad_words_ids": []}) == []
    assert unmet({"no_repeat_ngram_size": 3, "do_sample": True, "num_beams": 2}) == [
        "no_repeat_ngram_size=3",
        "num_beams=2 while sampling",
    ]
