"""From prompts to texts: ends, stops, whole characters, seeds, contexts; every kind of model."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import UserError
from data_pipeline.objectives.causal import CausalObjective
from data_pipeline.objectives.prefix import PrefixObjective
from data_pipeline.objectives.seq2seq import Seq2SeqObjective
from data_pipeline.tokenizer import BytesTokenizer
from llmscale.config import ModelConfig
from llmscale.generate import Completion, Generator, Settings, generate, reading_of
from llmscale.generate import decode as decoding
from llmscale.generate.prompts import Context, contexts_of
from llmscale.generate.text import Text
from llmscale.model import Transformer
from llmscale.parallel.init import build
from tests.generate.models import greedy

TOKENIZER = BytesTokenizer()
PAD, END = TOKENIZER.special["pad"], TOKENIZER.special["eos"]
SHAPE = {"layers": 2, "hidden_size": 24, "heads": 2, "max_positions": 32, "init_std": 0.3}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return build(ModelConfig(**SHAPE), TOKENIZER.vocab_size, seed=2).eval()


@pytest.fixture(scope="module")
def seq2seq() -> Transformer:
    config = ModelConfig(**SHAPE, architecture="encoder_decoder", positions="relative", relative_buckets=8)
    return build(config, TOKENIZER.vocab_size, seed=2).eval()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[Iterator[int]]:
    """Lists of tokens put here are chosen, by row, whatever the logits."""
    rows: list[Iterator[int]] = []

    def choose(logits: Tensor, *_: object) -> Tensor:
        return torch.tensor([next(row) for row in rows[: len(logits)]])

    monkeypatch.setattr(decoding, "choose", choose)
    return rows


def scripted(rows: list[Iterator[int]], *texts: Sequence[int]) -> None:
    rows[:] = [iter([*text, END, END]) for text in texts]


def test_a_prompt_follows_the_end_of_document_token(model: Transformer) -> None:
    for prompt in ("ab", ""):
        context = Context([END, *TOKENIZER.encode(prompt)])
        [expected] = greedy(model, [context], Settings(max_new_tokens=9), end=END)
        [found] = generate(model, TOKENIZER, [prompt], Settings(max_new_tokens=9))
        assert found == Completion(TOKENIZER.decode(expected), expected, "length" if len(expected) == 9 else "end")


def test_contexts_by_what_the_model_was_trained_on(model: Transformer, seq2seq: Transformer) -> None:
    ids = TOKENIZER.encode("ab")
    objectives = (CausalObjective(), PrefixObjective(), Seq2SeqObjective(concatenate=True))
    found = [contexts_of(["ab"], TOKENIZER, model.config, reading_of(objective))[0] for objective in objectives]
    assert found == [Context([END, *ids]), Context([END, *ids], prefix=True), Context([*ids, END])]
    assert contexts_of(["ab"], TOKENIZER, seq2seq.config, "document") == [Context([PAD], [*ids, END])]


@pytest.mark.parametrize("beams", [1, 3])
def test_prompts_in_any_batches_give_the_same(model: Transformer, seq2seq: Transformer, beams: int) -> None:
    prompts = ["ab", "a longer one", "x", "ab", "zyxw"]
    for form in (model, seq2seq):
        for temperature in {0.0, 0.0 if beams > 1 else 1.3}:
            options = {"max_new_tokens": 12, "beams": beams, "temperature": temperature, "top_p": 0.9, "top_k": 60}
            runs = [generate(form, TOKENIZER, prompts, Settings(**options, batch=size)) for size in (1, 2, 5)]
            assert runs[0] == runs[1] == runs[2]
            alone = [generate(form, TOKENIZER, [prompt], Settings(**options))[0] for prompt in prompts]
            assert runs[0][:3] + runs[0][4:] == alone[:3] + alone[4:]
            # Copies of a prompt are sampled differently.
            assert (runs[0][3] == runs[0][0]) == (temperature == 0)


def test_the_seed_decides(model: Transformer) -> None:
    runs = [generate(model, TOKENIZER, ["ab"], Settings(20, temperature=1.0, seed=seed)) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_what_ends_a_text(model: Transformer, script: list[Iterator[int]]) -> None:
    written = TOKENIZER.encode("one STOP two")
    for settings, expected in (
        (Settings(20), Completion("one STOP two", written, "end")),
        (Settings(3), Completion("one", written[:3], "length")),
        (Settings(20, stop=("STOP",)), Completion("one ", written[:8], "stop")),
        (Settings(20, stop=("two", "P t")), Completion("one STO", written[:10], "stop")),
        (Settings(20, stop=("twx", "two!")), Completion("one STOP two", written, "end")),
        (Settings(20, stop_tokens=(TOKENIZER.encode("T")[0],)), Completion("one S", written[:5], "stop")),
        (Settings(12, stop=("two",)), Completion("one STOP ", written, "stop")),
    ):
        scripted(script, written)
        assert generate(model, TOKENIZER, ["a"], settings) == [expected]


def test_whole_characters_are_streamed_by_prompt(model: Transformer, script: list[Iterator[int]]) -> None:
    texts = ["né中🙂!", "plain"]
    scripted(script, *map(TOKENIZER.encode, texts))
    pieces: dict[int, list[str]] = {0: [], 1: []}
    done = {}
    order = []
    for piece in Generator(model, TOKENIZER).stream(["a", "b"], Settings(20)):
        order.append(piece.prompt)
        if piece.text:
            pieces[piece.prompt].append(piece.text)
        if piece.completion is not None:
            done[piece.prompt] = piece.completion
    assert pieces == {0: list(texts[0]), 1: list(texts[1])}
    assert [done[number].text for number in (0, 1)] == texts
    assert order[:2] == [0, 1]


def test_an_unfinished_character_is_shown_at_the_end(model: Transformer, script: list[Iterator[int]]) -> None:
    scripted(script, TOKENIZER.encode("a中")[:-1])
    assert generate(model, TOKENIZER, [""], Settings(3))[0].text == "a\ufffd"


def test_what_may_become_a_stop_text_is_held_back() -> None:
    text = Text(TOKENIZER, [], stop=("abc", "bcd"))
    shown = [text.add(token) for token in TOKENIZER.encode("xabxbcd")]
    assert shown == ["x", "", "", "abx", "", "", ""]
    assert (text.stopped, text.text, text.finish()) == (True, "xabx", "")
    text = Text(TOKENIZER, [], stop=("abc",))
    assert [text.add(token) for token in TOKENIZER.encode("xab")] == ["x", "", ""]
    assert (text.finish(), text.stopped) == ("ab", False)


class Spaced(BytesTokenizer):
    """Drops a space in front, as SentencePiece does where it puts one there itself."""

    def _decode(self, tokens: list[int]) -> str:
        return super()._decode(tokens).removeprefix(" ")


def test_the_space_between_prompt_and_continuation_is_kept() -> None:
    tokenizer = Spaced()
    text = Text(tokenizer, tokenizer.encode("the prompt's last words"))
    assert "".join(text.add(token) for token in tokenizer.encode(" and more")) == " and more"


def test_beam_search_stops_at_texts(model: Transformer) -> None:
    settings = Settings(max_new_tokens=10, beams=3)
    [free] = generate(model, TOKENIZER, ["ab"], settings)
    assert len(free.text) > 3
    stop = free.text[2:4]
    [stopped] = generate(model, TOKENIZER, ["ab"], Settings(max_new_tokens=10, beams=3, stop=(stop,)))
    assert stop not in stopped.text
    pieces = list(Generator(model, TOKENIZER).stream(["ab"], settings))
    assert [(piece.text, piece.completion) for piece in pieces] == [(free.text, free)]


def test_the_context_may_be_filled_but_not_exceeded(model: Transformer, seq2seq: Transformer) -> None:
    generate(model, TOKENIZER, ["a" * 20], Settings(11))
    for prompts, count, says in (
        (["a" * 20], 12, "the 21 tokens of the prompt and 12 new tokens exceed the model's context of 32; .*to 11 or"),
        (["a", "b" * 31], 1, "prompt 2 of 2 has 32 tokens, but the model's context is 32; .*to 31 or less"),
    ):
        with pytest.raises(UserError, match=says):
            generate(model, TOKENIZER, prompts, Settings(count))
    generate(seq2seq, TOKENIZER, ["a" * 31], Settings(32))
    for prompt, count, says in (
        ("a" * 32, 1, "the prompt has 33 tokens, but the model's context is 32; .*to 32 or less"),
        ("a", 33, "^33 new tokens exceed the model's context of 32; set --max-new-tokens to 32 or less"),
        ("", 5, "the prompt is empty, but the encoder of this model needs a source text"),
    ):
        with pytest.raises(UserError, match=says):
            generate(seq2seq, TOKENIZER, [prompt], Settings(count))
    with pytest.raises(UserError, match="prompt 2 of 2 is empty, but this model, trained on pairs of texts, needs"):
        generate(model, TOKENIZER, ["a", ""], Settings(5), reading="source")


def test_an_encoder_and_too_many_beams_are_refused(model: Transformer) -> None:
    encoder = build(ModelConfig(**SHAPE, architecture="encoder"), TOKENIZER.vocab_size, seed=0)
    with pytest.raises(UserError, match="is encoder, which continues no text; give a checkpoint of a decoder"):
        Generator(encoder, TOKENIZER)
    with pytest.raises(UserError, match=r"beams is 200, which compares 400 .* has 259; set beams to 129 or less"):
        generate(model, TOKENIZER, ["a"], Settings(5, beams=200))


def test_tokens_beyond_the_tokenizer_have_no_text() -> None:
    wide = build(ModelConfig(**SHAPE, vocab_size=400), 400, seed=2).eval()
    [found] = generate(wide, TOKENIZER, ["ab"], Settings(25, temperature=5.0, seed=1))
    assert max(found.tokens) >= TOKENIZER.vocab_size
    assert found.text == TOKENIZER.decode([token for token in found.tokens if token < TOKENIZER.vocab_size])
