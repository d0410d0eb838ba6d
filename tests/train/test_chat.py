"""`llmscale train` with objective chat: GPT-2 beside a plain loop of transformers that packs nothing; the templates
that a run keeps, for our own chat and for transformers; mistakes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from data_pipeline.open_samples import open_samples
from data_pipeline.tokenizer import load_tokenizer
from data_pipeline.tokenizer.frame import stop_tokens
from llmscale.checkpoint.model import load_model
from llmscale.config import load_config
from llmscale.generate.template import Message, template_of
from llmscale.hugging_face.exporting import export_checkpoint
from llmscale.hugging_face.importing import import_directory
from tests.hugging_face.test_chat_templates import ROLES, TOKENS, library_tokenizer
from tests.train.forked import run, run_on_ranks
from tests.train.runs import evaluations, ledger, metrics

STEPS = 50
BATCH = 4
LENGTH = 120
LR = 3e-3


def write_dialogues(folder: Path, count: int = 160) -> list[list[dict[str, str]]]:
    draw = random.Random(3)
    words = ["red", "blue", "green", "你好", "sky", "sea"]
    made = []
    for number in range(count):
        turns = []
        for _ in range(draw.randint(1, 2)):
            color = draw.choice(words)
            turns += [
                {"role": "user", "content": f"{number} {color}?"},
                {"role": "assistant", "content": f"it is {color} " * draw.randint(1, 2)},
            ]
        made.append(turns)
    rows = "".join(json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in made)
    (folder / "chat.jsonl").write_text(rows, encoding="utf-8")
    return made


def write_gpt2(folder: Path) -> None:
    """A small GPT-2 and a tokenizer with a chat template, as transformers writes them."""
    backend = library_tokenizer(first=False)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS, chat_template=ROLES)
    tokenizer.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=backend.get_vocab_size(), n_layer=2, n_embd=32, n_head=2, n_positions=160, bos_token_id=1,
        eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    write_dialogues(folder)
    write_gpt2(folder / "hf")
    import_directory(folder / "hf", folder / "ours")
    config = load_model(folder / "ours").config
    data = config.data.model_dump(mode="json", exclude_defaults=True)
    source = {"kind": "jsonl", "paths": ["chat.jsonl"], "layout": "auto"}
    settings: dict[str, Any] = {
        "run": {"directory": "run", "threads": 1, "device": "cpu"},
        "data": {
            **data, "sources": [source], "sequence_length": LENGTH, "workers": 0, "lanes": 2, "shuffle_buffer": 8,
            "holdout": 0.1,
        },
        "objective": {"name": "chat"},
        "model": config.model.model_dump(mode="json"),
        "optimizer": {"lr": LR, "betas": [0.9, 0.95], "weight_decay": 0, "clip": 1.0},
        "schedule": {"name": "constant"},
        "train": {"steps": STEPS, "global_batch": BATCH, "micro_batch": 2, "init_from": "ours"},
        "evaluation": {"interval": 25, "baselines": False},
        "logging": {"interval": 1},
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(settings))
    done = run("train", "config.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "chat.jsonl are in layout messages" in done.stderr
    return folder


def dialogues_of_steps(folder: Path, tokenizer: Any) -> list[list[str]]:
    """The texts of the dialogues of each step, one string a dialogue, by the numbers that they hold."""
    config = load_config(folder / "config.yaml")
    samples = open_samples(
        config.data, load_tokenizer(folder / "run/tokenizer"), config.objective, seed=config.run.seed, cache=None
    )
    steps = []
    for step in range(STEPS):
        texts = []
        for sample in samples.samples(range(step * BATCH, (step + 1) * BATCH)):
            place = 0
            for piece in sample.pieces:
                texts.append(tokenizer.decode(sample.tokens[place : place + piece.length]))
                place += piece.length
        steps.append(texts)
    return steps


def answers(folder: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Each dialogue's ids and labels by its text, up to its last answer; rendered and tokenised by transformers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    by_text = {}
    for line in (folder / "chat.jsonl").read_text(encoding="utf-8").splitlines():
        turns = json.loads(line)["messages"]
        ids = tokenizer.apply_chat_template(turns)["input_ids"]
        labels = [-100] * len(ids)
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                prompt = tokenizer.apply_chat_template(turns[:number], add_generation_prompt=True)["input_ids"]
                end = ids.index(tokenizer.convert_tokens_to_ids("<|end|>"), len(prompt)) + 1
                assert ids[: len(prompt)] == prompt
                labels[len(prompt) : end] = ids[len(prompt) : end]
        last = max(place for place, label in enumerate(labels) if label != -100) + 1
        by_text[tokenizer.decode(ids[:last])] = ids[:last], labels[:last]
    return by_text


def answer_loss(model: Any, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The sum over the answers' tokens, of a dialogue in a row of its own."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), ignore_index=-100, reduction="sum")


def plain_losses(folder: Path) -> list[float]:
    """AdamW over the mean of all answers' tokens of a step."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf")
    model.train()
    by_text = answers(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0)
    losses = []
    for texts in dialogues_of_steps(folder, tokenizer):
        rows = [by_text[text] for text in texts]
        count = sum(label != -100 for _, labels in rows for label in labels[1:])
        total = torch.zeros(())
        for ids, labels in rows:
            total = total + answer_loss(model, ids, labels)
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return losses


def test_losses_are_those_of_a_plain_loop_without_packing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    got = [loss for _, loss, _ in metrics(folder / "run")]
    expected = plain_losses(folder)
    assert len(got) == STEPS
    assert max(abs(a - b) / b for a, b in zip(got, expected, strict=True)) < 1e-4
    assert got[-1] < 0.5 * got[0]
    first, *_, last = evaluations(folder / "run")
    assert last["loss"] < first["loss"]
    assert {"bits_per_byte", "perplexity"} <= last.keys()


def test_training_reads_what_chat_reads_and_stops_where_it_was_taught(folder: Path) -> None:
    trained = load_model(folder / "run")
    template, words = template_of(
        Path(trained.checkpoint.tokenizer), trained.tokenizer, trained.model.config, "document"
    )
    assert words == "the chat template in chat_template.jinja"
    turns = [Message("user", "1 red?"), Message("assistant", "it is red"), Message("user", "2 sky?")]
    library = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    plain = [{"role": turn.role, "content": turn.text} for turn in turns]
    expected = library.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
    assert template.context(turns).tokens == expected
    end = library.convert_tokens_to_ids("<|end|>")
    assert stop_tokens(trained.tokenizer) == (end, 2)


def test_an_export_carries_template_tokenizer_and_generation_config(folder: Path) -> None:
    export_checkpoint(folder / "run", folder / "back")
    library = transformers.AutoTokenizer.from_pretrained(folder / "back")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "back")
    assert library.chat_template == ROLES
    end = library.convert_tokens_to_ids("<|end|>")
    assert model.generation_config.eos_token_id == [end, 2]
    ids = library.apply_chat_template([{"role": "user", "content": "7 blue?"}], add_generation_prompt=True,
                                      return_tensors="pt")["input_ids"]  # fmt: skip
    answer = model.generate(ids, do_sample=False, max_new_tokens=40)[0, ids.shape[1] :]
    assert answer[-1] == end
    assert library.decode(answer[:3]).startswith("it")


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.data=2", "engine.zero_stage=3"),
        ("parallel.tensor=2",),
        ("parallel.pipeline=2", "engine.zero_stage=1"),
    ],
    ids=str,
)
def test_layouts_learn_the_same(layout: tuple[str, ...], folder: Path) -> None:
    name = "-".join(layout).replace("=", "").replace(".", "")
    done = run_on_ranks(
        2, "train", "config.yaml", f"run.directory={name}", "train.steps=8",
        "train.micro_batch=1", *layout, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = metrics(folder / name)
    for (_, loss, _), (_, expected, _) in zip(got, metrics(folder / "run"), strict=False):
        assert abs(loss - expected) / expected < 1e-5
    assert len(got) == 8


def test_a_tokenizer_without_a_template_gets_a_simple_one(folder: Path) -> None:
    changes = ("data.tokenizer={kind: bytes}", "train.init_from=null", "model.vocab_size=null", "run.directory=plain")
    done = run("train", "config.yaml", *changes, "train.steps=2", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "using a simple chat template (User: ..., Assistant: ...), since the tokenizer has none" in done.stderr
    trained = load_model(folder / "plain")
    template, _ = template_of(Path(trained.checkpoint.tokenizer), trained.tokenizer, trained.model.config, "document")
    assert trained.tokenizer.decode(template.context([Message("user", "hi")]).tokens) == "User: hi\nAssistant:"
    again = run("train", "config.yaml", *changes, "train.steps=3", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "template" not in again.stderr


def test_a_template_of_ones_own(folder: Path) -> None:
    (folder / "own.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    changes = ("data.tokenizer.chat_template=own.jinja", "run.directory=own", "train.steps=1")
    done = run("train", "config.yaml", *changes, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "using the chat template in own.jinja" in done.stderr
    kept = (folder / "own/tokenizer/chat_template.jinja").read_text()
    assert kept == (folder / "own.jinja").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("model.architecture=encoder_decoder",), "objective.name is chat, which trains a decoder"),
        (("data.tokenizer.chat_template=none.jinja",), "none.jinja cannot be read (No such file or directory)"),
        (("data.tokenizer.chat_template=last.jinja",), "is not prefix-consistent: before message 2"),
        (("data.tokenizer.chat_template=bad.jinja",), "chat.jsonl:1: the chat template in chat_template.jinja refuses"),
        (("data.sources=[{kind: jsonl, paths: [chat.jsonl], layout: sharegpt}]",), "has no field conversations"),
        (
            ("data.sources=[{kind: jsonl, paths: [wrong.jsonl], layout: auto}]",),
            "wrong.jsonl:2: message 1 has the role",
        ),
    ],
)
def test_what_cannot_be(changes: tuple[str, ...], words: str, folder: Path) -> None:
    (folder / "last.jinja").write_text("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    (folder / "bad.jinja").write_text("{{ raise_exception('no thanks') }}")
    rows = [
        {"messages": [{"role": role, "content": "x"}, {"role": "assistant", "content": "y"}]} for role in ("user", "me")
    ]
    (folder / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(
        "train", "config.yaml", "run.directory=never", "data.lanes=1", "data.holdout=0", "evaluation.interval=0",
        *changes, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_evaluated_on_other_dialogues(folder: Path) -> None:
    """By the run's own layout; the figure is that of a plain loop over the answers."""
    (folder / "other.jsonl").write_text((folder / "chat.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    done = run("eval", "run", "--data", "other.jsonl", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    export_checkpoint(folder / "run", folder / "evaluated")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "evaluated").eval()
    rows = answers(folder).values()
    with torch.no_grad():
        total = sum(answer_loss(model, ids, labels) for ids, labels in rows)
    count = sum(label != -100 for _, labels in rows for label in labels[1:])
    assert figures["tokens"] == count
    assert abs(figures["loss"] - float(total) / count) < 1e-5
    turns = [turn for line in (folder / "chat.jsonl").read_text(encoding="utf-8").splitlines()
             for turn in json.loads(line)["messages"]]  # fmt: skip
    said = sum(len(turn["content"].strip().encode()) for turn in turns if turn["role"] == "assistant")
    assert said <= figures["bytes"] <= said + len(turns)


@pytest.mark.slow
def test_replayed_text_goes_on_after_a_stop_and_on_two_ranks(folder: Path) -> None:
    """The same losses and the same ledger; held-out figures are of dialogues, and text is measured by itself."""
    (folder / "pretraining.txt").write_text("grass is green and the sea is blue\n" * 200)
    plain = {"kind": "text", "paths": ["pretraining.txt"], "delimiter": "\n", "weight": 0.4}
    chat = {"kind": "jsonl", "paths": ["chat.jsonl"], "layout": "auto", "weight": 0.6}
    settings = json.loads((folder / "config.yaml").read_text())
    settings["data"] |= {"sources": [chat, plain], "span_bytes": 2000}
    settings["objective"]["weights"] = {"assistant": 1, "text": 0.5}
    settings["finetune"] = {"forgetting": [{"paths": ["pretraining.txt"]}]}
    (folder / "replay.yaml").write_text(json.dumps(settings))
    for name, steps in (("whole", 12), ("stopped", 5), ("stopped", 12)):
        done = run("train", "replay.yaml", f"train.steps={steps}", f"run.directory={name}", cwd=folder)
        assert done.returncode == 0, done.stderr
    assert metrics(folder / "stopped") == metrics(folder / "whole")
    assert ledger(folder / "stopped") == ledger(folder / "whole")
    run_on_ranks(2, "train", "replay.yaml", "train.steps=12", "run.directory=two", cwd=folder)
    assert ledger(folder / "two") == ledger(folder / "whole")
    for (step, loss, _), (other, expected, _) in zip(metrics(folder / "two"), metrics(folder / "whole"), strict=True):
        assert step == other
        assert loss == pytest.approx(expected, rel=1e-5)
    [text] = json.loads((folder / "whole" / "summary.json").read_text())["forgetting"].values()
    assert text["after"] < text["before"]
    shown = run("data", "show", "replay.yaml", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "text " in shown.stdout
    assert "assistant " in shown.stdout
