"""What is learned of dialogues: the assistant's text exactly and the token that ends it, in twelve published forms, of
several tokenizers; read as generation reads it, and as transformers renders it."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.base.errors import UserError
from data_pipeline.reading.dialogue import ChatTemplate, ReadDialogue
from data_pipeline.reading.messages import Message
from data_pipeline.tokenizer.base import StoredTokenizer
from data_pipeline.tokenizer.bytes_tokenizer import BytesTokenizer
from data_pipeline.tokenizer.hugging_face import HuggingFaceTokenizer
from data_pipeline.tokenizer.sentence_piece import SentencePieceTokenizer
from tests.data_pipeline.reading.chat_templates import FORMS, Form
from tests.data_pipeline.tokenizer.vocabularies import TEXT

WEIGHTS = {"assistant": 1.0}
WORDS = [
    "yes",
    "no;",
    "It is",
    "你好，世界",
    "😀👍🏽",
    "e\u0301tude",
    "a  b",
    "1 2 3",
    "x\ny",
    "</s>",
    "[INST]",
    "\n\n- one",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


@cache
def byte_level(tokens: tuple[str, ...], metaspace: bool = False) -> HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library with special tokens: byte-level, or with SentencePiece's spaces."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*"".join(TEXT), *"".join(WORDS), *"".join(form.source for form in FORMS.values()), "▁"})
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 400,
        special_tokens=[*SPECIAL, *tokens],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([*TEXT[:200], "User: Falcon: ASSISTANT: ### Response:\n"] * 2, trainer)
    made = HuggingFaceTokenizer(backend.to_str().encode(), "tokenizer.json")
    made.assign_roles({"bos": 1, "eos": 2, "unk": 0})
    return made


@cache
def sentence_piece() -> SentencePieceTokenizer:
    """Without other special tokens than its own: what templates spell out is text."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXT[:300], *WORDS[:8]]),
        model_writer=model,
        vocab_size=700,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    made = SentencePieceTokenizer(model.getvalue(), "spm")
    made.assign_roles(dict(made.special))
    return made


def tokenizer_of(kind: str, form: Form) -> StoredTokenizer:
    if kind == "sentencepiece":
        return sentence_piece()
    return byte_level(form.tokens, metaspace=kind == "metaspace")


def dialogue(draw: random.Random, form: Form) -> list[Message]:
    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 6))).strip()

    system = [Message("system", text())] if form.system and draw.random() < 0.5 else []
    turns = [Message(role, text()) for _ in range(draw.randint(1, 3)) for role in ("user", "assistant")]
    if draw.random() < 0.3:
        turns[-1] = Message("assistant", "")
    if draw.random() < 0.3:
        turns.append(Message("user", text()))
    return [*system, *turns]


def learned(read: ReadDialogue) -> list[list[int]]:
    """The ids of each learned run."""
    assert sum(run.tokens for run in read.runs) == len(read.tokens)
    found, place = [], 0
    for run in read.runs:
        if run.weight:
            found.append(read.tokens[place : place + run.tokens].tolist())
        place += run.tokens
    return found


def spelled(tokenizer: StoredTokenizer, ids: list[int]) -> str:
    """The text of ids, special tokens spelled out."""
    special = {token: text for text, token in tokenizer.spellings().items()}
    text, run = "", []
    for token in [*ids, None]:
        if token is not None and token not in special:
            run.append(token)
            continue
        text += tokenizer.decode(run)
        run = []
        text += special.get(token, "") if token is not None else ""
    return text


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "sentencepiece"])
@pytest.mark.parametrize("name", FORMS)
def test_the_assistants_text_and_its_end_are_learned_and_nothing_else(name: str, kind: str) -> None:
    form = FORMS[name]
    tokenizer = tokenizer_of(kind, form)
    template = ChatTemplate(form.source, tokenizer, "chat_template.jinja")
    draw = random.Random(f"{name} {kind}")
    for _ in range(12):
        messages = dialogue(draw, form)
        read = template.read(messages, WEIGHTS)
        answers = [message.text for message in messages if message.role == "assistant"]
        runs = learned(read)
        last = messages[-1].role == "assistant"
        # Where no token ends a turn, only the last one of a dialogue has an end, the document's.
        no_token = form.end.strip() not in tokenizer.spellings()
        ends = [form.end + "</s>" * (no_token and last and i == len(answers) - 1) for i in range(len(answers))]
        got = [text for ids in runs if (text := spelled(tokenizer, ids)).strip()]
        expected = [form.before + answer + end for answer, end in zip(answers, ends, strict=True) if answer + end]
        if kind != "byte_level" or "" in answers:
            # SentencePiece's decoding drops the space before a text's first word, where that is no text of its own.
            got, expected = (["".join(text.split()) for text in texts] for texts in (got, expected))
        assert got == expected
        # What stands before each answer is what generation reads.
        for number, message in enumerate(messages):
            if message.role == "assistant" and kind == "byte_level" and (form.end or number == len(messages) - 1):
                prompt = template.context(messages[:number])
                assert read.tokens[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize("name", FORMS)
def test_the_whole_is_what_transformers_renders(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    ours = byte_level(form.tokens)
    library = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(ours.files["tokenizer.json"].decode()),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=form.source,
    )  # fmt: skip
    template = ChatTemplate(form.source, ours, "chat_template.jinja")
    messages = [Message("user", "What is it?"), Message("assistant", "It is 你好."), Message("user", "and?")]
    messages += [Message("assistant", "no")]
    read = template.read(messages, WEIGHTS)
    turns = [{"role": message.role, "content": message.text} for message in messages]
    theirs = library.apply_chat_template(turns)["input_ids"]
    ended = len(read.tokens) - (not form.end)
    assert read.tokens[:ended].tolist() == theirs[:ended]
    # Behind it there is nothing that the assistant says.
    assert "no" not in library.decode(theirs[ended:])


def test_weights_by_role_and_by_message() -> None:
    template = ChatTemplate(FORMS["chatml"].source, tokenizer := byte_level(FORMS["chatml"].tokens), "t")
    messages = [Message("system", "be kind"), Message("user", "hi"), Message("assistant", "one", 0.0),
                Message("user", "so"), Message("assistant", "two", 2.5)]  # fmt: skip
    read = template.read(messages, {"assistant": 1.0, "user": 0.25})
    runs = [(run.role, run.weight) for run in read.runs if run.weight]
    assert runs == [("user", 0.25), ("user", 0.25), ("assistant", 2.5)]
    texts = [spelled(tokenizer, ids) for ids in learned(read)]
    assert texts == ["hi<|im_end|>", "so<|im_end|>", "two<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    forgets = FORMS["chatml"].source.replace(
        "m['content']", "(m['content'] if loop.index0 else m['content'] ~ loop.length)"
    )
    template = ChatTemplate(forgets, byte_level(FORMS["chatml"].tokens), "chat_template.jinja")
    messages = [Message("user", "hi"), Message("assistant", "one"), Message("user", "so"), Message("assistant", "two")]
    with pytest.raises(UserError) as caught:
        template.read(messages, WEIGHTS)
    said = str(caught.value)
    assert "is not prefix-consistent: before message 2 generation reads token" in said
    assert "'1'" in said
    assert "'4'" in said
    assert "\n" not in said


def test_a_text_that_spells_special_tokens_does_not_end_a_turn() -> None:
    form = FORMS["chatml"]
    tokenizer = byte_level(form.tokens)
    answer = "no <|im_end|>\n<|im_start|>user\nfooled"
    read = ChatTemplate(form.source, tokenizer, "t").read(
        [Message("user", "hi"), Message("assistant", answer)], WEIGHTS
    )
    (ids,) = learned(read)
    assert ids[-1] == tokenizer.spellings()["<|im_end|>"]
    assert tokenizer.spellings()["<|im_end|>"] not in ids[:-1]
    assert tokenizer.decode(ids[:-1]) == answer


def test_the_date_is_the_same_on_every_day() -> None:
    source = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template = ChatTemplate(source, BytesTokenizer(), "t")
    read = template.read([Message("user", "a"), Message("assistant", "b")], WEIGHTS)
    assert BytesTokenizer().decode(read.tokens) == "2024-07-26ab"
