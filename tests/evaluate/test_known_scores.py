"""Scores of imported models are those of transformers, computed by plain loops, and of minicons."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import yaml

from llmscale.evaluate.artefact import Record
from llmscale.evaluate.artefact_files import load_artefact
from llmscale.evaluate.evaluation import Choices, prepare, run
from llmscale.evaluate.metrics import figure_of
from llmscale.evaluate.placed import place_whole
from llmscale.evaluate.tasks import load_tasks
from llmscale.hugging_face.importing import import_directory

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
WORDS = ["the", "cat", "sat", "on", "a", "mat", "two", "old", "dog", "ran", "far", "away", "from", "house", "while"]
TEXTS = ["The cat sat on a mat.", "The cats sat on a mat!", "Two old dogs ran far from houses", "猫 sat, 2 dogs ran"]


def evaluate(model: Path, task: Path, **choices: object) -> list[Record]:
    """The records of a task."""
    placed = place_whole(str(model), torch.device("cpu"), torch.float32)
    choices_made = Choices(output=model.with_name("out"), **choices)  # type: ignore[arg-type]
    (prepared,) = prepare(placed, load_tasks([str(task)]).tasks, choices_made)
    run([prepared], lambda task, done, items: None)
    return load_artefact(prepared.folder).records


def texts_task(folder: Path, texts: list[str], **settings: object) -> Path:
    """A task of kind perplexity."""
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    path = folder / "texts.yaml"
    task = {"kind": "perplexity", "text": "{{ text }}", "data": {"files": ["texts.jsonl"]}, **settings}
    path.write_text(yaml.safe_dump(task))
    return path


@pytest.fixture
def bert(tmp_path: Path) -> tuple[Path, transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A checkpoint, and the model and tokenizer that it was imported from."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *".,!2猫", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), intermediate_size=64, initializer_range=0.2, **SIZES)
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    import_directory(tmp_path / "hf", tmp_path / "model")
    return tmp_path / "model", model, tokenizer


def test_pseudo_likelihood_hides_each_token_in_turn(bert, tmp_path: Path) -> None:
    folder, model, tokenizer = bert
    records = evaluate(folder, texts_task(tmp_path, TEXTS), scorer="pseudo_likelihood")
    for text, record in zip(TEXTS, records, strict=True):
        ids = tokenizer(text)["input_ids"]
        assert record.answers[0].ids == ids[1:-1]
        for place in range(1, len(ids) - 1):
            hidden = torch.tensor([[*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]])
            with torch.no_grad():
                wanted = float(model(hidden).logits[0, place].log_softmax(-1)[ids[place]])
            assert record.answers[0].log_probabilities[place - 1] == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("scorer", ["pseudo_likelihood", "within_word_l2r"])
def test_pseudo_likelihoods_are_those_of_minicons(scorer: str, bert, tmp_path: Path) -> None:
    minicons = pytest.importorskip("minicons.scorer")
    folder, model, tokenizer = bert
    tokenizer.batch_encode_plus = tokenizer.__call__  # the name that it had when minicons was written
    records = evaluate(folder, texts_task(tmp_path, TEXTS), scorer=scorer)
    metric = {"pseudo_likelihood": "original"}.get(scorer, scorer)
    theirs = minicons.MaskedLMScorer(model, "cpu", tokenizer)
    for text, record in zip(TEXTS, records, strict=True):
        (wanted,) = theirs.token_score([text], PLL_metric=metric)
        values = [value for token, value in wanted if token not in ("[CLS]", "[SEP]")]
        assert record.answers[0].log_probabilities == pytest.approx(values, rel=1e-6, abs=1e-6)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.GPT2LMHeadModel]:
    folder = tmp_path_factory.mktemp("gpt2")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate(["<|endoftext|>", *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **end).save_pretrained(folder / "hf")
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=257, initializer_range=0.2, bos_token_id=0, eos_token_id=0, **SIZES)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder / "hf")
    import_directory(folder / "hf", folder / "model")
    return folder / "model", model


@pytest.mark.parametrize(("window", "stride"), [(None, None), (64, 16), (40, 40), (33, 7), (10, 1)])
def test_perplexity_in_windows_is_that_of_a_loop(
    gpt2: tuple[Path, transformers.GPT2LMHeadModel], window: int | None, stride: int | None, tmp_path: Path
) -> None:
    folder, model = gpt2
    draw = random.Random(window)
    texts = [" ".join(draw.choices([*WORDS, "猫坐在垫子上", "é😀"], k=size)) for size in (2, 12, 60)]
    given = {name: value for name, value in (("window", window), ("stride", stride)) if value is not None}
    records = evaluate(folder, texts_task(tmp_path, texts, **given))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.with_name("hf"))
    size = window or 64
    total = count = 0.0
    for text, record in zip(texts, records, strict=True):
        wanted = _loop(model, [0, *tokenizer(text)["input_ids"]], size, stride or size)
        assert record.answers[0].log_probabilities == pytest.approx(wanted, abs=1e-5)
        total, count = total - sum(wanted), count + len(text.encode())
    names = ("bits_per_byte", "byte_perplexity", "token_perplexity")
    figures = {name: figure_of(name, records).value for name in names}
    tokens = sum(len(record.answers[0].ids) for record in records)
    assert figures["bits_per_byte"] == pytest.approx(total / count / math.log(2), rel=1e-5)
    assert figures["byte_perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert figures["token_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-5)


def _loop(model: transformers.GPT2LMHeadModel, ids: list[int], size: int, stride: int) -> list[float]:
    """Log-probabilities of all tokens but the first: windows of `size` inputs whose ends are `stride` apart (the last
    one ends with the text), each scoring what no window before it has scored."""
    scored: list[float] = []
    end = size
    while len(scored) < len(ids) - 1:
        last = min(end, len(ids) - 1)  # of the inputs, whose last one predicts ids[last]
        first = max(0, last - size)
        with torch.no_grad():
            logits = model(torch.tensor([ids[first:last]])).logits[0].log_softmax(-1)
        scored += [float(logits[place - 1 - first, ids[place]]) for place in range(len(scored) + 1, last + 1)]
        end += stride
    return scored


@pytest.mark.parametrize(
    ("window", "stride", "separator"), [(None, None, None), (40, 13, None), (None, None, "\n\n"), (33, 7, " = ")]
)
def test_perplexity_of_joined_texts_is_that_of_a_loop_over_all_tokens(
    gpt2: tuple[Path, transformers.GPT2LMHeadModel],
    window: int | None,
    stride: int | None,
    separator: str | None,
    tmp_path: Path,
) -> None:
    folder, model = gpt2
    draw = random.Random(window)
    domains = ["wiki", "news", "wiki", "wiki", "news"]
    texts = [" ".join(draw.choices([*WORDS, "猫坐在垫子上", "é😀"], k=size)) for size in (2, 12, 60, 1, 5)]
    given = {"window": window, "stride": stride, "separator": separator}
    task = texts_task(tmp_path, texts, documents="joined", group="{{ domain }}", **given)
    lines = [json.dumps({"text": text, "domain": name}) for text, name in zip(texts, domains, strict=True)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    records = evaluate(folder, task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder.with_name("hf"))
    size = window or 64
    nats: dict[str, float] = {}
    for domain in set(domains):
        own = [text for text, name in zip(texts, domains, strict=True) if name == domain]
        if separator is None:
            ids = [0, *(token for text in own for token in (*tokenizer(text)["input_ids"], 0))]
        else:
            ids = [0, *tokenizer(separator.join(own))["input_ids"]]
        wanted = _loop(model, ids, size, stride or size)
        answers = [record.answers[0] for record in records if record.group == domain]
        assert [token for answer in answers for token in answer.ids] == ids[1:]
        got = [value for answer in answers for value in answer.log_probabilities]
        assert got == pytest.approx(wanted, abs=1e-5)
        nats[domain] = -sum(wanted)
        for text, answer in zip(own, answers, strict=True):
            raw = text.encode()
            assert b"".join(raw[start:end] for start, end in answer.spans) == raw
    figure = figure_of("bits_per_byte", records).value
    assert figure == pytest.approx(sum(nats.values()) / math.log(2) / len("".join(texts).encode()), rel=1e-5)
